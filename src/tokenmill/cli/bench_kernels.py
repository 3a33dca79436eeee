"""Times every kernel at a 7B model's sizes against its floor on this GPU and against torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenmill.cli.options import positive
from tokenmill.cli.parser import Parser
from tokenmill.cli.table import table
from tokenmill.errors import ConfigError

PARTS = ("layers", "products", "attention", "tiles")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["layers", "products", "attention"],
                        help="tiles tries every cut of every product, which takes minutes")  # fmt: skip
    parser.add_argument("--best", type=positive, default=1, help="cuts printed of each product, the fastest first")
    parser.add_argument("--limit", type=positive, default=300, help="seconds a part may take")
    parser.add_argument("--output-file", type=Path, help="append a JSON line for every row")


def run(args: argparse.Namespace) -> int:
    import torch

    from tokenmill.bench import ceilings, kernel_jobs
    from tokenmill.bench.kernels import HEADERS
    from tokenmill.bench.report import append, machine

    if not torch.cuda.is_available():
        raise ConfigError("bench kernels measures a GPU's kernels and there is none here: run it on a machine with one")
    if args.output_file:
        append(args.output_file, [])  # a folder that cannot be written to is found out now
    limits, about = ceilings.measure(), machine(torch.cuda.get_device_name())
    rates = f"copy {limits.copy / 1e12:.2f} TB/s, read {limits.read / 1e12:.2f} TB/s"
    print(f"{rates}, bf16 {limits.flops / 1e12:.0f} TFLOP/s")
    rows, failures = [], []
    for part in args.parts:
        for name, timings, failure in kernel_jobs.run(part, limits, args.limit):
            rows += [timing.cells() for timing in timings[: args.best]]
            failures += [f"{name}: {failure}"] if failure else []
            if args.output_file:
                append(args.output_file, [{**timing.record(), **about} for timing in timings])
    print(table(HEADERS, rows))
    for line in failures:
        print(line)
    return 1 if failures else 0
