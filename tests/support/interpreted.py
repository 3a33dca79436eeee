"""Runs the cases of one op with the Triton backend in Triton's interpreter (on the CPU); prints case names and errors.

A process of its own: kernels are interpreted or compiled for the life of a process.
"""

from __future__ import annotations

import json
import sys

import torch

from tokenmill import find
from tokenmill.kernels.case import load_cases

# The interpreter is slow: larger cases are for GPUs, and so are bfloat16 (which it truncates and multiplies wrongly)
# and writing fp8 caches (it carries roundings into the exponent wrongly).
MOST_FLOPS = 3_000_000


def tried(op: str, case: str) -> bool:
    return "bfloat16" not in case and not (op == "attn_in" and case.startswith("fp8"))


def main(op: str) -> None:
    module = find.load("tokenmill.kernels.triton", op)
    function = getattr(module, op)
    if op == "attention":
        # Contexts as short as these are then several blocks long, and shared out over splits.
        module.BLOCK_L = 32
    errors = {}
    for case in load_cases(op):
        if case.flops < MOST_FLOPS and tried(op, case.name):
            call = case.make(torch.device("cpu"))
            errors[case.name] = call.error(function(*call.arguments)) / case.tolerance
    print(json.dumps(errors))


if __name__ == "__main__":
    main(sys.argv[1])
