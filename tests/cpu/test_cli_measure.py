"""`bench engine`, `bench serve` and `eval ppl` as commands, on engines whose answers are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.support.echo import EchoModel, echo_text_engine
from tests.support.http_server import running

from tokenmill.bench.report import HEADERS
from tokenmill.cli import engine as cli_engine
from tokenmill.cli.main import main
from tokenmill.cli.options import engine_config


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[EchoModel]:
    """Every engine that a command opened: one that says `a` for ever, with logprob -0.5 for every token."""
    models: list[EchoModel] = []

    async def open_echo(args: Any, path: str) -> EchoModel:
        engine_config(args, path)
        models.append(echo_text_engine(name=path, script=lambda request: [97] * request.stop.max_new_tokens))
        return models[-1]

    monkeypatch.setattr(cli_engine, "open_engine", open_echo)
    return models


def test_bench_engine(opened: list[EchoModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.jsonl"
    command = ["bench", "engine", "echo", "--workload", "static:4x16x8", "prefill:3x20", "--repeats", "2"]
    assert main([*command, "--output-file", str(file)]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["case"], r["requests"], r["failed"], r["prompt_tokens"], r["new_tokens"]) for r in lines] == [
        ("static:4x16x8", 4, 0, 64, 32), ("static:4x16x8", 4, 0, 64, 32),
        ("prefill:3x20", 3, 0, 60, 3), ("prefill:3x20", 3, 0, 60, 3),
    ]  # fmt: skip
    assert lines[0]["model"] == "echo" and lines[0]["settings"] == {"cache_prefix_caching": False}
    assert {"cpu", "torch", "tokenmill", "device"} <= set(lines[0])
    rows = capsys.readouterr().out.splitlines()[-6:]
    assert rows[0].split() == " ".join(HEADERS).split() and len(rows) == 6
    # Fresh ids for every repeat, greedy and to the full length.
    seen = opened[0].fake.seen
    assert len({r.id for r in seen}) == len(seen) and opened[0].fake.closed
    assert {r.sampling.temperature for r in seen} == {0.0} and all(not r.stop.token_ids for r in seen)


def test_bench_engine_leaves_out_what_does_not_fit(
    opened: list[EchoModel], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "engine", "echo", "--workload", "static:1x4000x512"]) == 2
    assert "context of 4096 tokens" in capsys.readouterr().err
    assert opened[0].fake.closed


def test_bench_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.jsonl"
    with running() as live:
        url = f"127.0.0.1:{live.server.port}/v1"
        command = ["bench", "serve", url, "--workload", "static:6x8x5", "--concurrency", "2", "--vocab-size", "1000"]
        assert main([*command, "--output-file", str(file)]) == 0
        assert live.engine.peak <= 2
        assert {r.max_new_tokens for r in live.engine.seen} == {5} and all(r.ignore_eos for r in live.engine.seen)
    (line,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert (line["requests"], line["failed"], line["new_tokens"], line["model"]) == (6, 0, 30, "fake")
    assert "static:6x8x5" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_told_first(
    opened: list[EchoModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none" / "out.jsonl"
    assert main(["bench", "engine", "echo", "--output-file", str(file)]) == 1
    assert capsys.readouterr().err == f"error: {file}: No such file or directory\n" and not opened


def test_a_defect_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(args: Any, path: str) -> EchoModel:
        raise KeyError("a\nb")

    monkeypatch.setattr(cli_engine, "open_engine", broken)
    assert main(["bench", "engine", "echo"]) == 70
    shown = capsys.readouterr().err
    assert shown.startswith("error: a defect of Tokenmill: KeyError") and shown.count("\n") == 1


def test_bench_serve_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "http://127.0.0.1:9"]) == 5
    shown = capsys.readouterr().err
    assert shown.startswith("error: no server with /v1/models") and shown.count("\n") == 1


def test_eval_ppl(opened: list[EchoModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    assert main(["eval", "ppl", "echo", "--text", str(text), "--window", "64", "--stride", "32"]) == 0
    # 900 bytes and BOS: 900 tokens are scored, each at -0.5.
    shown = capsys.readouterr().out
    assert f"perplexity {math.exp(0.5):.4f}  nll 0.50000  tokens 900  windows 28  window 64  stride 32" in shown


def test_eval_ppl_refuses_what_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = tmp_path / "x.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (binary, tmp_path / "none"):
        assert main(["eval", "ppl", "echo", "--text", str(path)]) == 3
        assert capsys.readouterr().err.startswith(f"error: {path} cannot be read as UTF-8 text")
