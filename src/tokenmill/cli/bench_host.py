"""Microseconds of planning and committing a step at 1, 16, 64 and 256 rows, with a runner that does nothing."""

from __future__ import annotations

import argparse

from tokenmill.cli.options import positive
from tokenmill.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--steps", type=positive, default=1000)


def run(args: argparse.Namespace) -> int:
    from tokenmill.bench.host import measure

    for rows in args.rows:
        print(measure(rows, args.steps))
    return 0
