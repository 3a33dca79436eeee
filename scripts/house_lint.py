#!/usr/bin/env python3
"""What ruff does not know of this house: banned calls, and words that may not be committed. Standard library only.

In the package: `torch.load` (but for the one reader of *.bin shards), pickle and its kin, `print` outside the command
line, the environment outside env.py, `except Exception: pass`, `eval` and `exec`, `if tp > 1` outside distributed/.
In every tracked text file: paths of a machine. Prints `path:line: what` and ends with 1 where anything was found.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "tokenmill"

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
# One file, with weights_only=True and mmap=True: old quantizers wrote *.bin shards. It imports pickle for its error.
BIN_READER = "weights/pickled.py"
MAY_PRINT = ("cli/",)
MAY_READ_ENVIRONMENT = ("env.py",)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/[\w.-]+")


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def fault_of_call(node: ast.Call, room: str) -> str | None:
    name = dotted(node.func)
    keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
    if name == "torch.load" and not (room == BIN_READER and keywords.get("weights_only") is True):
        return f"torch.load runs code of the file; only {BIN_READER} may, with weights_only=True"
    if name == "print" and not room.startswith(MAY_PRINT):
        return "print in library code; use log.get_logger()"
    if name in ("eval", "exec"):
        return f"{name} runs text as code"
    return None


def fault_of_import(node: ast.Import | ast.ImportFrom, room: str) -> str | None:
    if room == BIN_READER:
        return None
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
    found = PICKLES & {name.split(".")[0] for name in names}
    return f"{', '.join(found)} runs code of its input; use msgspec or safetensors" if found else None


def swallows(node: ast.ExceptHandler) -> bool:
    wide = node.type is None or dotted(node.type) in ("Exception", "BaseException")
    return wide and all(isinstance(s, ast.Pass) for s in node.body)


def fault_of(node: ast.AST, room: str) -> str | None:
    if isinstance(node, ast.Call):
        return fault_of_call(node, room)
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return fault_of_import(node, room)
    if isinstance(node, ast.ExceptHandler) and swallows(node):
        return "an exception is swallowed"
    if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.getenv", "os.environb"):
        return None if room.startswith(MAY_READ_ENVIRONMENT) else "the environment is read in env.py only"
    if isinstance(node, ast.Compare) and re.fullmatch(r".*\btp > 1", ast.unparse(node)):
        return None if room.startswith("distributed/") else "tp > 1 is asked in distributed/ only"
    return None


def lint_source(text: str, room: str) -> Iterator[tuple[int, str]]:
    """Line and fault of one module; `room` is its path below the package, `weights/checkpoint.py`."""
    for node in ast.walk(ast.parse(text)):
        fault = fault_of(node, room)
        if fault:
            yield getattr(node, "lineno", 0), fault


def lint_package() -> Iterator[str]:
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).as_posix()
        for line, fault in lint_source(path.read_text(encoding="utf-8"), room):
            yield f"src/tokenmill/{room}:{line}: {fault}"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def lint_words() -> Iterator[str]:
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        for number, line in enumerate(lines, 1):
            if MACHINE_PATH.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: a path of a machine"


def main() -> int:
    faults = [*lint_package(), *lint_words()]
    print(*(faults or ["nothing banned was found"]), sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
