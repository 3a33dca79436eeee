#!/usr/bin/env python3
"""House numbers of the whole tree: sizes of functions and files, arguments, local imports, types.

Standard library only. A function's length is its lines from `def` to its end without its docstring; protocol stubs (a
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREES = ("src/tokenmill", "demo", "scripts", "tests")
PRODUCT = "src/tokenmill"

FUNCTION_MEDIAN, FUNCTION_MEAN, FUNCTION_P90, FUNCTION_STOP = 8, 13, 30, 60
KERNEL_STOP, ARRAYS_STOP = 250, 90
FILE_STOP, INIT_STOP, ARGUMENTS_STOP = 500, 30, 6

# Where the house's own exceptions apply: array code without a decision tree may reach 90 lines a function.
ARRAY_FILES = ("src/tokenmill/runner/inputs.py", "src/tokenmill/engine/scheduler.py")
KERNEL_FOLDERS = ("src/tokenmill/kernels/triton/", "src/tokenmill/kernels/cuda/")
EXCEPTIONS = {
    "src/tokenmill/__init__.py": "the lazy public face: names stand twice, for type checkers and for import",
}
# Names of ops follow their mathematics: a kernel takes the tensors it takes.
MANY_ARGUMENTS = ("src/tokenmill/kernels/",)


@dataclass(frozen=True)
class Function:
    where: str
    name: str
    lines: int
    arguments: int
    typed: bool
    public: bool
    stub: bool


@dataclass
class File:
    path: str
    lines: int
    functions: list[Function] = field(default_factory=list)
    imports: int = 0
    local_imports: int = 0
    globals_changed: list[int] = field(default_factory=list)


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return (first.end_lineno or first.lineno) - first.lineno + 1
    return 0


def is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    body = node.body[1:] if docstring_lines(node) else node.body
    return all(isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and s.value.value is ... for s in body)


def measure_function(path: str, node: ast.FunctionDef | ast.AsyncFunctionDef, public: bool) -> Function:
    a = node.args
    arguments = [x for x in [*a.posonlyargs, *a.args, *a.kwonlyargs] if x.arg not in ("self", "cls")]
    length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node)
    return Function(
        where=f"{path}:{node.lineno}",
        name=node.name,
        lines=length,
        arguments=len(arguments),
        typed=all(x.annotation for x in arguments),
        public=public and (not node.name.startswith("_") or node.name == "__init__"),
        stub=is_stub(node),
    )


def visit(file: File, node: ast.AST, inside: bool, public: bool) -> None:
    """Adds what lies under `node`; `inside` a function, `public` where every enclosing name is."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            file.functions.append(measure_function(file.path, child, public and not inside))
            visit(file, child, True, False)
        elif isinstance(child, ast.ClassDef):
            visit(file, child, inside, public and not child.name.startswith("_"))
        else:
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                file.imports += 1
                file.local_imports += inside
            if isinstance(child, ast.Global):
                file.globals_changed.append(child.lineno)
            visit(file, child, inside, public)


def measure_file(path: Path) -> File:
    text = path.read_text(encoding="utf-8")
    file = File(path.relative_to(ROOT).as_posix(), text.count("\n"))
    visit(file, ast.parse(text), False, True)
    return file


def measure(tree: str) -> list[File]:
    return [measure_file(p) for p in sorted((ROOT / tree).rglob("*.py")) if ".partial" not in p.as_posix()]


def function_stop(path: str) -> int:
    if path.startswith(KERNEL_FOLDERS):
        return KERNEL_STOP
    return ARRAYS_STOP if path in ARRAY_FILES else FUNCTION_STOP


def faults_of_file(file: File) -> Iterator[str]:
    product = file.path.startswith(PRODUCT)
    stop = INIT_STOP if file.path.endswith("__init__.py") else FILE_STOP
    if file.lines > stop and file.path not in EXCEPTIONS:
        yield f"{file.path}: {file.lines} lines, the stop is {stop}"
    for line in file.globals_changed:
        yield f"{file.path}:{line}: a module global is changed"
    for f in file.functions:
        if f.lines > function_stop(file.path):
            yield f"{f.where}: {f.name} has {f.lines} lines, the stop is {function_stop(file.path)}"
        if product and f.arguments > ARGUMENTS_STOP and not f.stub and not file.path.startswith(MANY_ARGUMENTS):
            yield f"{f.where}: {f.name} takes {f.arguments} arguments, the stop is {ARGUMENTS_STOP}: make a record"
        if product and f.public and not f.typed:
            yield f"{f.where}: {f.name} is public and has an argument without a type"


def faults_of_product(files: list[File]) -> Iterator[str]:
    lengths = lengths_of(files)
    for name, value, stop in (
        ("median", statistics.median(lengths), FUNCTION_MEDIAN),
        ("mean", statistics.mean(lengths), FUNCTION_MEAN),
        ("p90", percentile(lengths, 90), FUNCTION_P90),
    ):
        if value > stop:
            yield f"{PRODUCT}: the {name} length of a function is {value:.1f}, the house number is {stop}"


def lengths_of(files: list[File]) -> list[int]:
    return [f.lines for file in files for f in file.functions if not f.stub] or [0]


def percentile(values: list[int], percent: int) -> int:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def print_table(trees: dict[str, list[File]]) -> None:
    print(f"{'tree':<28}{'files':>6}{'lines':>8}{'longest':>8}{'functions':>10}"
          f"{'median':>7}{'mean':>6}{'p90':>5}{'max':>5}{'local imports':>14}")  # fmt: skip
    for tree, files in trees.items():
        if not files:
            continue
        lengths, imports = lengths_of(files), sum(f.imports for f in files)
        local = 100 * sum(f.local_imports for f in files) / max(imports, 1)
        print(f"{tree:<28}{len(files):>6}{sum(f.lines for f in files):>8}{max(f.lines for f in files):>8}"
              f"{len(lengths):>10}{statistics.median(lengths):>7.0f}{statistics.mean(lengths):>6.1f}"
              f"{percentile(lengths, 90):>5}{max(lengths):>5}{local:>13.0f}%")  # fmt: skip


def by_room(files: list[File]) -> dict[str, list[File]]:
    rooms: dict[str, list[File]] = {}
    for file in files:
        parts = Path(file.path).relative_to(PRODUCT).parts
        rooms.setdefault(f"  {parts[0]}" if len(parts) > 1 else "  (floor 0)", []).append(file)
    return rooms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true", help="end with 1 where a number is over its stop")
    parser.add_argument("--rooms", action="store_true", help="a line for every room of the package")
    options = parser.parse_args()
    trees = {tree: measure(tree) for tree in TREES}
    product = trees[PRODUCT]
    print_table({**trees, **(by_room(product) if options.rooms else {})})
    faults = [fault for files in trees.values() for file in files for fault in faults_of_file(file)]
    faults += faults_of_product(product)
    print(*(faults or ["every number is within the house's"]), sep="\n")
    return 1 if faults and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
