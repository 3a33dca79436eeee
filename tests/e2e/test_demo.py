"""`tokenmill demo` from end to end: on the built-in model where it is shipped, else on a tiny one with its context."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tokenmill
from tokenmill.cli.main import main
from tokenmill.models.tiny import make_tiny

SHIPPED = (Path(tokenmill.__file__).parent / "demo_model" / "config.json").is_file()
SECTIONS = ("Memory plan", "Loading", "Chat in English", "Chat in Chinese", "A story", "Recall over three turns",
            "Speed, one conversation at a time", "The same model in 4 bits",
            "Server and OpenAI client", "Done in")  # fmt: skip


def test_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    context = {"max_position_embeddings": 4096}
    model = "demo" if SHIPPED else str(make_tiny("internlm2", tmp_path / "m", overrides=context))
    assert main(["demo", model]) == 0
    shown = capfd.readouterr().out
    places = [shown.index(f"== {title}") for title in SECTIONS]
    assert places == sorted(places)
    answers = re.search(r"(\d+) tokens in 8 answers, (\d+) tokens/s, TTFT median (\d+) ms", shown)
    assert answers is not None and int(answers[1]) > 8
    assert "SIGTERM: the server ended with 0" in shown and f"models.list().data[0].id is {model!r}" in shown
    assert re.search(r"\[streamed: TTFT \d+ ms, \d+ tokens, \d+ tokens/s\]", shown)
    assert shown.count("the server ended with 0") == 2 and len(re.findall(r"^w4-int4kv: ", shown, re.MULTILINE)) == 2
    assert re.search(r"quality +KL [\d.]+e-\d+ nats", shown) and "is reused" not in shown
    pages = list((tmp_path / "cache").glob("tokenmill/demo/*/REPORT.md"))
    assert len(pages) == 1 and str(pages[0]) in shown
    if SHIPPED:
        judged = re.search(r"(\d+) of (\d+) answers that can be judged are right, (\d+) of 8 ended", shown)
        assert judged is not None and judged[1] == judged[2] and judged[3] == "8"
