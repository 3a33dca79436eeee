"""Vision-language folders: the language part is quantized as a text model's is, the rest is what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.pictures import picture

from tokenmill import GenerationConfig, TurbomindEngineConfig, pipeline
from tokenmill.cli.main import main
from tokenmill.models.parity import Probe, check_parity
from tokenmill.models.tiny import make_tiny
from tokenmill.quant.job import Job
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.run import quantize_folder
from tokenmill.quant.text import Tokens
from tokenmill.weights.convert import items
from tokenmill.weights.export import verify
from tokenmill.weights.source import open_folder

BESIDE = {"preprocessor_config.json": '{"crop_size": 56}', "chat_template.jinja": "{{ messages[0]['content'] }}"}
LLM = "language_model."
SMALL = ["--calib-samples", "2", "--calib-seqlen", "48"]
VERBS = {
    "awq": ["auto_awq", "--w-group-size", "64", *SMALL],
    "gptq": ["auto_gptq", "--w-group-size", "64", *SMALL],
    "smooth_quant": ["smooth_quant", *SMALL],
    "fp8": ["blocked_fp8", "--block-size", "32", "--calib-seqlen", "48"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_tiny("internvl", tmp_path_factory.mktemp("vl") / "m")
    for name, text in BESIDE.items():
        (made / name).write_text(text)
    return made


@pytest.fixture(scope="module", params=VERBS)
def quantized(folder: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    out = folder.parent / request.param
    verb, *options = VERBS[request.param]
    assert main(["lite", verb, str(folder), *options, "--work-dir", str(out)]) == 0
    return request.param, out


def dequantized(folder: Path, out: Path) -> Path:
    """The plain folder that a quantized one stands for."""
    out.mkdir()
    source, tensors = open_folder(folder), {}
    for item in items(source):
        if item.suffixes:
            tensors[f"{item.name}.weight"] = source.weight(item.name).dequantize(torch.float32)
        else:
            tensors[item.name] = source.tensor(item.name)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    for path in folder.glob("*.json*"):
        if path.name not in ("manifest.json", "quantize_config.json"):
            (out / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["llm_config"]["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_only_the_language_part_changes(folder: Path, quantized: tuple[str, Path]) -> None:
    method, out = quantized
    verify(out)
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    kept = [name for name in before if not name.startswith(f"{LLM}model.layers.")]
    assert len(kept) > 30 and all(torch.equal(before[name], after[name]) for name in kept)
    packed = [name for name in after if name not in before]
    assert packed and all(name.startswith(f"{LLM}model.layers.") for name in packed)
    config = json.loads((out / "config.json").read_text())
    assert config["llm_config"].pop("quantization_config")["quant_method"] == method
    assert config == json.loads((folder / "config.json").read_text())
    beside = {p.name for p in folder.iterdir()} - {"config.json", "model.safetensors"}
    assert beside >= BESIDE.keys() and all((out / n).read_bytes() == (folder / n).read_bytes() for n in beside)


def test_a_chat_with_an_image_equals_the_dequantized_model(quantized: tuple[str, Path], tmp_path: Path) -> None:
    """Layers, image features and logits are those of transformers' model of the same numbers; so are answers."""
    _, out = quantized
    report = check_parity(out, Probe(tokens=40))
    assert report.ok and report.stages[-1].name == "logits with an image", str(report)
    answers = []
    for one in (out, dequantized(out, tmp_path / "twin")):
        with pipeline(str(one), TurbomindEngineConfig(session_len=256)) as pipe:
            greedy = GenerationConfig(max_new_tokens=6, ignore_eos=True, top_k=1)
            answers.append(pipe(("what", picture(40, 80, 2)), gen_config=greedy).token_ids)
    assert len(answers[0]) == 6 and answers[0] == answers[1]


def test_dtype_is_stated_in_every_part(folder: Path, tmp_path: Path) -> None:
    source = make_tiny("internvl", tmp_path / "m")
    config = json.loads((source / "config.json").read_text())
    config["llm_config"]["torch_dtype"] = "float32"
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}
    (source / "config.json").write_text(json.dumps(config))
    windows = Tokens((), (tuple(range(3, 40)),), "ids")
    quantize_folder(Job(source, tmp_path / "q", Recipe("rtn", group=64), windows, dtype=torch.float16))
    written = json.loads((tmp_path / "q" / "config.json").read_text())
    assert written["torch_dtype"] == written["llm_config"]["torch_dtype"] == "float16"
    assert "quantization_config" not in written and written["llm_config"]["quantization_config"]["group_size"] == 64
    assert load_file(tmp_path / "q" / "model.safetensors")["mlp1.3.weight"].dtype == torch.float16


def test_statistics_of_the_language_part(folder: Path, tmp_path: Path) -> None:
    assert main(["lite", "calibrate", str(folder), *SMALL, "--work-dir", str(tmp_path / "s")]) == 0
    names = torch.load(tmp_path / "s" / "key_stats.pth", weights_only=True)["max"]
    assert list(names) == ["model.layers.0", "model.layers.1"]
