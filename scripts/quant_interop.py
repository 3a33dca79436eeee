#!/usr/bin/env python3
"""Quantized folders between Tokenmill and other packages, in both directions, weight by weight and bit by bit.

    PYTHONPATH=src:. python scripts/quant_interop.py FOLDER VENV [--only NAME ..]

FOLDER is of scripts/outlier_model.py; VENV has the packages (scripts/quant_peers.py says which). Ours: rounded by us in
every format, opened by the package whose format it is. Theirs: made by the package, read by us, and opened by it.
Where both dequantize to the same numbers in the dtype of the scales, codes, zeros and scales are equal.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from tokenmill.quant.job import Job
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.run import quantize_folder
from tokenmill.quant.text import Tokens
from tokenmill.weights.source import open_source

OURS = {
    "awq": Recipe("rtn"),
    "gptq": Recipe("rtn", to="gptq", symmetric=True),
    "gptq_v2": Recipe("rtn", to="gptq"),
    "gptq 3 bits": Recipe("rtn", to="gptq", bits=3, symmetric=True),
    "compressed-tensors": Recipe("rtn", to="compressed-tensors"),
    "compressed-tensors symmetric": Recipe("rtn", to="compressed-tensors", symmetric=True),
    "compressed-tensors 3 bits": Recipe("rtn", to="compressed-tensors", bits=3),
}
PEERS = ("llmcompressor-gptq", "gptqmodel", "gptqmodel-v1", "autoawq", "auto-round")
SCRIPT = Path(__file__).with_name("quant_peers.py")
SECONDS = 900


def call(venv: Path, *words: str) -> str:
    """Runs the peers' side; what went wrong, or nothing."""
    line = [str(venv / "bin" / "python"), str(SCRIPT), *words]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"more than {SECONDS} s"
    return "" if not done.returncode else (done.stderr.strip().splitlines() or ["no message"])[-1][-300:]


def compare(folder: Path, opened: Path) -> str:
    """How many linears are equal to the last bit, in fp16 (which the packages multiply in) or fp32."""
    source, found = open_source(folder), np.load(opened)
    names = [name for name in found.files if name.endswith("_proj")]
    same = 0
    for name in names:
        theirs = torch.from_numpy(found[name])
        kinds = (source.weight(name).dequantize(dtype).float() for dtype in (torch.float16, torch.float32))
        same += any(torch.equal(ours, theirs) for ours in kinds)
    return f"{same} of {len(names)} linears bit-exact"


def one(args: argparse.Namespace, name: str, work: Path) -> str:
    ids = ("--ids", str(args.folder / "calib-0.npy"))
    if name in OURS:
        quantize_folder(Job(args.folder, work / "q", OURS[name], Tokens((), (), "none")))
    else:
        failed = call(args.venv, "make", name, str(args.folder), str(work / "q"), *ids, "--samples", "8")
        if failed:
            return f"not made: {failed}"
    failed = call(args.venv, "load", str(work / "q"), str(work / "w.npz"))
    if failed:
        read = len([n for n in open_source(work / "q").names() if "proj" in n])
        return f"read by us ({read} tensors of linears), not loaded there: {failed}"
    return compare(work / "q", work / "w.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--only", nargs="+", choices=(*OURS, *PEERS))
    args = parser.parse_args()
    for name in args.only or (*OURS, *PEERS):
        with tempfile.TemporaryDirectory() as work:
            print(f"{'ours' if name in OURS else 'theirs'}: {name}: {one(args, name, Path(work))}", flush=True)


if __name__ == "__main__":
    main()
