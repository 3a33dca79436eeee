"""`eval compare` through the engine against transformers; what a quantized folder's report page says."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tokenmill.cli.main import main
from tokenmill.errors import ConfigError
from tokenmill.eval.compare import cut
from tokenmill.models.tiny import make_tiny
from tokenmill.quant.report import plot

IDS = np.random.default_rng(0).integers(3, 500, 100)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two random models of one kind, and a text."""
    base = tmp_path_factory.mktemp("pair")
    np.save(base / "ids.npy", IDS)
    return make_tiny("llama", base / "a", 0), make_tiny("llama", base / "b", 1), base / "ids.npy"


def by_transformers(a: Path, b: Path, windows: list[list[int]]) -> dict[str, float]:
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (a, b)]
    kl, same, nll, tokens = 0.0, 0.0, [0.0, 0.0], 0
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([window])
            p, q = (torch.log_softmax(model(ids).logits[0], -1) for model in models)
            kl += float((p.exp() * (p - q)).sum())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            nll = [n - float(x[:-1].gather(1, ids[0, 1:, None]).sum()) for n, x in zip(nll, (p, q), strict=True)]
            tokens += len(window)
    scored = tokens - len(windows)
    return {"kl": kl / tokens, "top1": same / tokens, "tokens": tokens,
            "perplexity_reference": float(np.exp(nll[0] / scored)), "perplexity": float(np.exp(nll[1] / scored))}


def compared(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["eval", "compare", *words, "--json", "--session-len", "128", "--max-batch-size", "2"])
    return code, json.loads(capsys.readouterr().out)


def test_the_figures_are_those_of_transformers(
    pair: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, text = map(str, pair)
    code, found = compared(capsys, a, b, "--text", text, "--window", "48", "--max-tokens", "97")
    wanted = by_transformers(pair[0], pair[1], [IDS[:48].tolist(), IDS[48:96].tolist()])
    assert code == 0 and found == pytest.approx(wanted, rel=1e-4)


def test_a_model_is_itself_but_for_its_cache(
    pair: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows are one prompt each, and still read what the cache stored: 4 bits cost more than 8, 8 more than none."""
    a, _, text = map(str, pair)
    losses = {
        kv: compared(capsys, a, a, "--text", text, "--window", "64", "--kv-b", kv)[1]["kl"]
        for kv in ("auto", "int8", "int4")
    }
    assert losses["auto"] == pytest.approx(0, abs=1e-9) and 0 < losses["int8"] < losses["int4"] / 10


def test_a_limit_is_an_exit_code(pair: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b, text = map(str, pair)
    assert compared(capsys, a, b, "--text", text, "--window", "50", "--max-kl", "1e-6")[0] == 1


def test_windows() -> None:
    assert cut(range(10), 4, 100) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert cut(range(10), 4, 5) == [(0, 1, 2, 3)]
    with pytest.raises(ConfigError, match="at least 2"):
        cut([5], 4, 100)
    with pytest.raises(ConfigError, match="--window 1"):
        cut(range(10), 1, 100)


def test_a_quantized_folder_has_a_page_and_a_plot(tmp_path: Path, pair: tuple[Path, Path, Path]) -> None:
    options = ["--calib-samples", "2", "--calib-seqlen", "16", "--calib-dataset", str(pair[2]), "--w-group-size", "64"]
    assert main(["lite", "auto_awq", str(pair[0]), *options, "--seed", "5", "--work-dir", str(tmp_path / "q")]) == 0
    told = json.loads((tmp_path / "q" / "quantization_report.json").read_text())
    page = (tmp_path / "q" / "REPORT.md").read_text()
    assert f"{told['held_out']['kl']:.3e} nats" in page and told["calibration"]["sha256"] in page
    assert f"{told['held_out']['top1']:.2%}" in page and "seed 5" in page and told["torch"] in page
    sizes = re.search(r"weights \| ([\d.]+) MiB, from ([\d.]+) MiB", page)
    assert sizes is not None
    for told_size, folder in zip(sizes.groups(), (tmp_path / "q", pair[0]), strict=True):
        on_disk = sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 2**20
        assert float(told_size) == pytest.approx(on_disk, abs=0.1)
    assert len(re.findall(r"\| \d+ \| [\d.]+e-\d+ \|", page)) == len(told["relative_error_after_layer"]) == 2
    drawn = xml.fromstring((tmp_path / "q" / "quantization_report.svg").read_text())
    assert len(drawn.findall("{http://www.w3.org/2000/svg}rect")) == 1 + 2


def test_bars_stand_as_high_as_their_logarithm() -> None:
    bars = xml.fromstring(plot([1e-4, 1e-3, 1e-2])).findall("{http://www.w3.org/2000/svg}rect")[1:]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2) and heights[0] < heights[1]
    assert len(plot([1e-3] * 80)) < 50_000
