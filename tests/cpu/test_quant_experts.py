"""Mixtures of experts are quantized without data: what is written is served, and is as far off as the report says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.support.packed import Packed

from tokenmill.cli.main import main
from tokenmill.errors import ConfigError
from tokenmill.models.build import build_model
from tokenmill.models.parity import Probe, check_parity
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import load_twin
from tokenmill.quant.job import Job
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.run import quantize_folder
from tokenmill.quant.text import Tokens
from tokenmill.weights.export import verify

IDS = torch.randint(3, 500, (2, 40), generator=torch.Generator().manual_seed(2))
HELD = Tokens((), tuple(map(tuple, IDS.tolist())), "ids")
RECIPES = {
    "rtn": Recipe("rtn", group=32),
    "rtn 8 bits": Recipe("rtn", bits=8, group=None),
    "rtn as gptq": Recipe("rtn", to="gptq", group=32, symmetric=True),
    "fp8 block": Recipe("fp8", block=(32, 32)),
    "fp8 channel": Recipe("fp8", fp8="channel"),
}


def served(folder: Path, ids: list[int]) -> torch.Tensor:
    packed = Packed(build_model(folder))
    packed.start(0, len(ids))
    return torch.log_softmax(packed.step([(0, ids)])[0], -1)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe"])
@torch.inference_mode()
def test_the_report_against_transformers(family: str, tmp_path: Path) -> None:
    """Plain and quantized model through transformers: KL and perplexities are those that our own blocks measured."""
    source = make_tiny(family, tmp_path / "m")
    found = quantize_folder(Job(source, tmp_path / "q", RECIPES["rtn"], HELD)).quality
    assert found is not None
    p, q = (torch.log_softmax(load_twin(folder)(IDS).logits, -1) for folder in (source, tmp_path / "q"))
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=2e-3) and found.kl > 0
    for ours, theirs in ((found.perplexity_plain, p), (found.perplexity_quantized, q)):
        nll = -theirs[:, :-1].gather(2, IDS[:, 1:, None]).mean()
        assert ours == pytest.approx(float(nll.exp()), rel=2e-3)
    assert check_parity(tmp_path / "q", Probe(tokens=30)).ok


@pytest.mark.parametrize("case", RECIPES)
def test_every_way_without_data_is_served(case: str, tmp_path: Path) -> None:
    source = make_tiny("qwen3_moe", tmp_path / "m")
    found = quantize_folder(Job(source, tmp_path / "q", RECIPES[case], HELD)).quality
    verify(tmp_path / "q")
    assert found is not None
    rows = [(served(source, ids), served(tmp_path / "q", ids)) for ids in IDS.tolist()]
    kl = sum(float((p.exp() * (p - q)).sum(-1).mean()) for p, q in rows) / len(rows)
    assert kl == pytest.approx(found.kl, rel=2e-3) and kl > 0


def test_command_line_and_what_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(make_tiny("mixtral", tmp_path / "m"))
    size = ["--w-group-size", "32", "--calib-seqlen", "48"]
    assert main(["lite", "auto_awq", source, "--calib-samples", "0", *size, "--work-dir", str(tmp_path / "a")]) == 0
    line = ["auto_awq", "--method", "rtn", "--calib-samples", "2", *size]
    assert main(["lite", line[0], source, *line[1:], "--work-dir", str(tmp_path / "b")]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    announced = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    routers = [f"model.layers.{index}.block_sparse_moe.gate" for index in (0, 1)]
    assert announced["quant_method"] == "awq" and announced["modules_to_not_convert"] == ["lm_head", *routers]
    capsys.readouterr()
    assert main(["lite", "auto_awq", source, "--calib-samples", "2", *size, "--work-dir", str(tmp_path / "c")]) > 0
    assert "experts need no data with lite auto_awq --method rtn" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="not the layers of deepseek_v2: quantize a model of another family"):
        quantize_folder(Job(make_tiny("deepseek_v2", tmp_path / "d"), tmp_path / "c", RECIPES["rtn"], HELD))
    assert not (tmp_path / "c").exists()


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    source = make_tiny("qwen3_moe", tmp_path / "m")
    quantize_folder(Job(source, tmp_path / "whole", RECIPES["rtn"], HELD))

    def stop(done: int, total: int, error: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_folder(Job(source, tmp_path / "q", RECIPES["rtn"], HELD), stop)
    quantize_folder(Job(source, tmp_path / "q", RECIPES["rtn"], HELD, resume=True))
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "q" / path.name).read_bytes() == path.read_bytes()
