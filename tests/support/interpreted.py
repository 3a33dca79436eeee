"""Runs the cases of one op with the Triton backend in Triton's interpreter (on the CPU); prints case names and errors.

A process of its own: kernels are interpreted or compiled for the life of a process.
"""

from __future__ import annotations

import json
import sys

import torch

from tokenmill import find
from tokenmill.kernels.case import load_cases

# The interpreter is slow: larger cases and bfloat16 (which it truncates and multiplies wrongly) are for GPUs.
MOST_FLOPS = 1_000_000


def main(op: str) -> None:
    function = getattr(find.load("tokenmill.kernels.triton", op), op)
    errors = {}
    for case in load_cases(op):
        if case.flops < MOST_FLOPS and "bfloat16" not in case.name:
            call = case.make(torch.device("cpu"))
            errors[case.name] = call.error(function(*call.arguments)) / case.tolerance
    print(json.dumps(errors))


if __name__ == "__main__":
    main(sys.argv[1])
