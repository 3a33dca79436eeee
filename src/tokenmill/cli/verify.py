"""Checks a checkpoint folder: sizes, index, and the SHA-256 of every file in its manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenmill.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", type=Path)


def run(args: argparse.Namespace) -> int:
    from tokenmill.weights.export import verify

    verify(args.folder)
    print(f"{args.folder} is whole")
    return 0
