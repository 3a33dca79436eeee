"""The fast rows of `scripts/tutorials.py`: tutorial commands as typed, each in its own process, each with exit 0."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from tokenmill.api.ports import free_port

SCRIPT = Path(__file__).parents[2] / "scripts" / "tutorials.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorials", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules["tutorials"] = module
    spec.loader.exec_module(module)
    return module


def test_the_fast_rows(tmp_path: Path) -> None:
    """But for the ports, which others may hold on this machine."""
    tutorials = script()
    for named in tutorials.PORTS:
        tutorials.PORTS[named] = free_port()
    rows = [seen for seen, _ in tutorials.run_rows(tmp_path, fast=True)]
    assert len(rows) >= 8 and all(row.ok and row.line for row in rows), rows
    # Where gradio is not installed its row is one line that says how to install it.
    assert {row.code for row in rows if "gradio" not in row.command} == {0}
    answers = [row.line for row in rows if row.command.startswith(f"tokenmill chat {tutorials.MATH}-4bit")]
    assert answers and all(re.search("12|30|42", answer) for answer in answers), answers


def test_the_page_holds_every_row() -> None:
    tutorials = script()
    text = tutorials.PAGE.read_text(encoding="utf-8")
    for row in tutorials.ROWS:
        for command in (row.command, *row.clients):
            assert f"`tokenmill {command}` | " in text, f"run scripts/tutorials.py: {command} is not there"
