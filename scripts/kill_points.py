"""Kills and starves quantize and convert at random points; nothing that loads may be wrong, and resume must be exact.

usage: kill_points.py [--kills 50] [--full 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenmill.errors import TokenmillError
from tokenmill.models.tiny import make_tiny
from tokenmill.weights.export import verify
from tokenmill.weights.source import open_source

QUANTIZE = ("lite", "auto_awq", "--calib-samples", "6", "--calib-seqlen", "64", "--w-group-size", "64", "--fast")


def command(verb: str, work: Path) -> list[str]:
    if verb == "convert":
        return ["convert-weights", str(work / "whole"), str(work / "out"), "--to", "gptq"]
    return [*QUANTIZE, str(work / "model"), "--work-dir", str(work / "out")]


def start(argv: list[str], file_bytes: int | None = None) -> subprocess.Popen[bytes]:
    """A run, with a limit on the size of its files where one is given: writing past it fails as on a full disk."""

    def limit() -> None:
        if file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    line = [sys.executable, "-m", "tokenmill", *argv]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limit)


def loads_wrongly(work: Path) -> list[str]:
    """Folders that open and are not whole."""
    wrong = []
    for folder in [p for p in work.rglob("*") if p.is_dir() and "out" in p.relative_to(work).parts[0]]:
        try:
            open_source(folder)
        except TokenmillError:
            continue
        try:
            verify(folder)
        except TokenmillError as error:
            wrong.append(f"{folder.name}: {error}")
    return wrong


def same(a: Path, b: Path) -> bool:
    names = sorted(p.name for p in a.iterdir())
    return names == sorted(p.name for p in b.iterdir()) and all(
        (a / n).read_bytes() == (b / n).read_bytes() for n in names
    )


def clear(work: Path) -> None:
    for path in work.glob("out*"):
        shutil.rmtree(path)


def one(work: Path, verb: str, run: subprocess.Popen[bytes], expected: Path, wait_s: float | None) -> list[str]:
    """Lets a run be hurt, looks at what is left, then finishes the work."""
    if wait_s is not None:
        time.sleep(wait_s)
        run.kill()
    run.wait()
    faults = loads_wrongly(work)
    if not (work / "out").exists():
        again = command(verb, work) + (["--resume"] if verb == "quantize" else [])
        if start(again).wait() != 0:
            faults.append(f"{verb} does not go on")
    if (work / "out").exists() and not same(work / "out", expected):
        faults.append(f"{verb} ends in other bytes than a run without interruption")
    clear(work)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--full", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, faults = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_tiny("llama", work / "model")
        took, expected = {}, {}
        for verb, kept in (("quantize", "whole"), ("convert", "converted")):
            begun = time.monotonic()
            if start(command(verb, work)).wait() != 0:
                print(f"{verb} fails by itself", file=sys.stderr)
                return 1
            took[verb] = time.monotonic() - begun
            expected[verb] = (work / "out").rename(work / kept)
        for i in range(args.kills + args.full):
            verb = "quantize" if i % 2 == 0 else "convert"
            killed = i < args.kills
            run = start(command(verb, work), None if killed else draw.randrange(1, 800_000))
            faults += one(work, verb, run, expected[verb], draw.uniform(0.5, 1) * took[verb] if killed else None)
    print(f"{args.kills} kills, {args.full} full disks: {len(faults)} faults")
    for fault in faults:
        print(f"  {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
