"""Changes the quantized format of a checkpoint without loss: between AWQ, GPTQ and compressed-tensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenmill.cli.parser import Parser
from tokenmill.cli.progress import progress


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", type=Path, help="a checkpoint folder")
    parser.add_argument("destination", type=Path, help="where to write; must not exist")
    parser.add_argument("--to", required=True, help="awq, gptq, gptq_v1, gptq_v2, compressed-tensors or safetensors")


def run(args: argparse.Namespace) -> int:
    from tokenmill.weights.convert import convert_weights

    with progress(f"to {args.to}", "tensors") as show:
        convert_weights(args.source, args.destination, args.to, show)
    print(f"wrote {args.destination}; next: tokenmill chat {args.destination}")
    return 0
