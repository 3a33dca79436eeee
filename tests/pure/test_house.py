"""The house's own checkers find what they are for."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


lint = load("house_lint")
numbers = load("house_numbers")


@pytest.mark.parametrize(
    ("source", "room", "word"),
    [
        ("torch.load('x')", "models/a.py", "torch.load"),
        ("torch.load('x')", "weights/pickled.py", "torch.load"),
        ("torch.load('x', weights_only=True)", "weights/a.py", "torch.load"),
        ("import pickle", "engine/a.py", "pickle"),
        ("from cloudpickle import dumps", "engine/a.py", "cloudpickle"),
        ("print(1)", "engine/a.py", "print"),
        ("os.environ['A']", "engine/a.py", "environment"),
        ("os.getenv('A')", "engine/a.py", "environment"),
        ("try:\n    a()\nexcept Exception:\n    pass", "engine/a.py", "swallowed"),
        ("if config.tp > 1:\n    pass", "runner/a.py", "tp > 1"),
        ("eval('1')", "engine/a.py", "eval"),
    ],
)
def test_banned_is_found(source: str, room: str, word: str) -> None:
    assert any(word in fault for _, fault in lint.lint_source(source, room))


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("torch.load('x', weights_only=True, mmap=True)", "weights/pickled.py"),
        ("import pickle", "weights/pickled.py"),
        ("print(1)", "cli/chat.py"),
        ("os.environ['A']", "env.py"),
        ("if group.tp > 1:\n    pass", "distributed/a.py"),
        ("try:\n    a()\nexcept KeyError:\n    pass", "engine/a.py"),
        ("model.eval()", "models/a.py"),
    ],
)
def test_allowed_is_not_found(source: str, room: str) -> None:
    assert not list(lint.lint_source(source, room))


def test_machine_paths_are_found() -> None:
    folder = "/".join(["", "work", "main"])
    assert lint.MACHINE_PATH.search(f"cd {folder} && make")
    assert not lint.MACHINE_PATH.search("see docs/work/main.md and https://example.org/work/x")


def measured(source: str) -> list[str]:
    file = numbers.File("src/tokenmill/engine/a.py", source.count("\n"))
    numbers.visit(file, ast.parse(source), False, True)
    return list(numbers.faults_of_file(file))


def test_numbers_over_their_stop_are_found() -> None:
    assert "61 lines" in measured("def f():\n" + "    a()\n" * 60)[0]
    assert "7 arguments" in measured("def f(a: A, b: A, c: A, d: A, e: A, f: A, g: A): pass")[0]
    assert "without a type" in measured("def f(a): pass")[0]
    assert "global" in measured("def f() -> None:\n    global x\n    x = 1")[0]
    assert "501 lines" in measured("a = 1\n" * 501)[0]


def test_a_docstring_and_self_do_not_count() -> None:
    body = '    """' + "word\n" * 80 + '    """\n'
    assert not measured("def f() -> None:\n" + body + "    a()\n")
    assert not measured("class A:\n    def f(self, a: A, b: A, c: A, d: A, e: A, f: A) -> None: ...\n")
    assert not measured("def _f(a): pass")
