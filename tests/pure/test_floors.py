"""The floors of docs/design.md, read from every import statement of the package (nothing is imported here)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
PACKAGE = SRC / "tokenmill"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("types", "config", "errors", "log", "env", "find", "pipes"),
    ("engine", "tokenize", "parse", "grammar", "vision", "metrics"),
    ("distributed", "kernels", "weights", "kv"),
    ("layers",),
    ("models",),
    ("runner", "quant"),
    ("api", "eval", "bench"),
    ("serve", "cli", "as_lmdeploy"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# The rooms of the same floor that a room may use, with the reason.
SIDEWAYS = {
    ("config", "errors"): "validation raises",
    ("find", "errors"): "an unknown name raises",
    ("log", "env"): "level and file",
    ("engine", "metrics"): "the request timeline",
    ("engine", "grammar"): "masks of a constraint",
    ("kernels", "weights"): "a linear is prepared from a weight",
    ("kernels", "kv"): "attention reads pages",
    ("kernels", "distributed"): "all-reduce is an op",
    ("weights", "distributed"): "a source is sharded by a group",
    ("bench", "api"): "a benchmark opens an engine as a product does",
    ("eval", "api"): "an evaluation opens an engine as a product does",
    ("cli", "serve"): "verbs start the server and the terminal",
}
FLOOR_1_PACKAGES = {
    "numpy", "tokenizers", "jinja2", "markupsafe", "PIL", "msgspec", "sentencepiece", "tiktoken", "llguidance",
}


@dataclass(frozen=True)
class Import:
    module: str
    target: str
    line: int
    at_start: bool  # False inside a function or under TYPE_CHECKING: no part of the start-up graph

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def resolve(module: str, path: Path, node: ast.ImportFrom) -> str:
    """The absolute name after `from`."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def targets(module: str, path: Path, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = resolve(module, path, node)
        return [f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names]
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
        return [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return []


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def walk(node: ast.AST, at_start: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_type_checking(child)
        yield child, at_start
        yield from walk(child, at_start and not deferred)


def imports() -> list[Import]:
    found = []
    for module, path in MODULES.items():
        for node, at_start in walk(ast.parse(path.read_text(encoding="utf-8")), True):
            line = getattr(node, "lineno", 0)
            found += [Import(module, target, line, at_start) for target in dict.fromkeys(targets(module, path, node))]
    return found


IMPORTS = imports()


def room(module: str) -> str:
    return module.split(".")[1] if module.startswith("tokenmill.") else ""


def is_entry(module: str) -> bool:
    """The package's own front (public names, `python -m`), which stands above every floor."""
    return room(module) in ("", "__main__")


def test_every_room_has_a_floor() -> None:
    unknown = {room(m) for m in MODULES if not is_entry(m)} - set(FLOOR) - {"demo_model"}
    assert not unknown, f"no floor in tests/pure/test_floors.py and docs/design.md: {unknown}"


def test_imports_go_down() -> None:
    wrong = []
    for item in IMPORTS:
        here, there = room(item.module), room(item.target)
        if is_entry(item.module) or not item.target.startswith("tokenmill.") or here == there:
            continue
        if there not in FLOOR or here not in FLOOR:
            continue
        if FLOOR[there] > FLOOR[here] or (FLOOR[there] == FLOOR[here] and (here, there) not in SIDEWAYS):
            wrong.append(f"{item} (floor {FLOOR[here]} -> {FLOOR[there]})")
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_uses_bench() -> None:
    wrong = [str(i) for i in IMPORTS if room(i.target) == "bench" and room(i.module) not in ("bench", "cli")]
    assert not wrong, "\n".join(wrong)


def test_packages_of_floors_0_and_1() -> None:
    wrong = []
    for item in IMPORTS:
        floor, top = FLOOR.get(room(item.module), 9), item.target.split(".")[0]
        if floor > 1 or top == "tokenmill" or top in sys.stdlib_module_names:
            continue
        if floor == 0 or top not in FLOOR_1_PACKAGES:
            wrong.append(str(item))
    assert not wrong, "\n".join(wrong)


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in list(edges):
        if node not in index:
            visit(node)
    return found


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_import_cycles() -> None:
    edges: dict[str, set[str]] = {}
    for item in IMPORTS:
        if item.at_start and item.target in MODULES and item.target != item.module:
            edges.setdefault(item.module, set()).add(item.target)
    assert not cycles(edges)


@pytest.mark.parametrize("floor", [0, 1])
def test_floor_starts_without_torch(floor: int) -> None:
    """Loads every module of the floor in a fresh process: what they load in turn counts as well."""
    names = [m for m in MODULES if FLOOR.get(room(m), 9) == floor and not m.endswith("__main__")]
    code = f"import importlib, sys\nfor m in {names!r}: importlib.import_module(m)\n" + (
        "bad = {'torch', 'transformers', 'fastapi', 'prompt_toolkit'} & set(sys.modules)\nsys.exit(', '.join(bad) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SRC, check=False)
    assert done.returncode == 0, done.stderr
