"""Changes the quantized format of a checkpoint without loss: between AWQ, GPTQ and compressed-tensors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokenmill.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", type=Path, help="a checkpoint folder")
    parser.add_argument("destination", type=Path, help="where to write; must not exist")
    parser.add_argument("--to", required=True, help="awq, gptq, gptq_v1, gptq_v2, compressed-tensors or safetensors")


def run(args: argparse.Namespace) -> int:
    from tokenmill.weights.convert import convert_weights

    def progress(done: int, total: int) -> None:
        print(f"\r{done}/{total} tensors", end="" if done < total else "\n", file=sys.stderr, flush=True)

    convert_weights(args.source, args.destination, args.to, progress)
    print(f"wrote {args.destination}")
    return 0
