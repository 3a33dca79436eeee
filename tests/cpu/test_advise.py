"""`lite advise` on a random model: four forms measured, a copy kept and reused, what cannot run left out and named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tokenmill.cli.main import main
from tokenmill.models.tiny import make_tiny

SMALL = ["--max-tokens", "64", "--window", "32", "--context", "64", "--batch", "2", "--max-new-tokens", "4",
         "--calib-samples", "2", "--calib-seqlen", "32", "--w-group-size", "64", "--fast", "--session-len", "128",
         "--max-batch-size", "4", "--memory", "64MiB"]  # fmt: skip


def advised(capsys: pytest.CaptureFixture[str], model: Path, work: Path, *more: str) -> tuple[str, str]:
    assert main(["lite", "advise", str(model), *SMALL, "--work-dir", str(work), *more]) == 0
    said = capsys.readouterr()
    return said.out, said.err


def forms(out: str) -> list[tuple[str, str]]:
    return re.findall(r"^(plain|W4) +(auto|int4|int8) ", out, re.MULTILINE)


def test_four_forms_and_one_recommendation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny("internlm2", tmp_path / "m")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    out, err = advised(capsys, model, tmp_path / "w4", "--text", str(tmp_path / "text.txt"), "--max-kl", "5")
    assert forms(out) == [("plain", "auto"), ("plain", "int4"), ("W4", "auto"), ("W4", "int4")]
    assert len(re.findall(r"^recommendation", out, re.MULTILINE)) == 1 and "blocks" in err
    made = (tmp_path / "w4" / "manifest.json").stat().st_mtime_ns
    # Once more: the copy is reused, and a check that the plain model fails is said before anything else.
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Hello", "expect": "no random model says this"}))
    out, err = advised(capsys, model, tmp_path / "w4", "--prompts", str(tmp_path / "p.jsonl"), "--max-kl", "5")
    assert out.startswith("First: the plain model answers 0 of 1 prompts right") and "blocks" not in err
    assert (tmp_path / "w4" / "manifest.json").stat().st_mtime_ns == made


def test_a_step_back_and_what_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit that 4-bit KV misses leads to 8 bits; groups that fill no row leave W4 out, and no folder."""
    model = make_tiny("llama", tmp_path / "m", std=0.1)
    out, _ = advised(capsys, model, tmp_path / "w4", "--w-group-size", "96", "--max-kl", "0.002")
    assert forms(out) == [("plain", "auto"), ("plain", "int4"), ("plain", "int8")]
    assert "left out: W4 weights: " in out and "96" in out and not (tmp_path / "w4").exists()
    assert "plain weights, int4 KV is out: KL" in out
