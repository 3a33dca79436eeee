"""FP8 weights with a scale per block of 128 x 128, as DeepSeek's files have them. Needs no calibration."""

from __future__ import annotations

import argparse

from tokenmill.cli import lite
from tokenmill.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    lite.add_common(parser, lite.Defaults(samples=0, seqlen=512))
    parser.add_argument("--block-size", type=int, default=128, help="rows and columns of a block")
    parser.add_argument("--quant-dtype", choices=("fp8", "float8_e4m3fn"), default="fp8")


def run(args: argparse.Namespace) -> int:
    from tokenmill.quant.recipe import Recipe

    return lite.quantize(args, Recipe("fp8", fp8="block", block=(args.block_size, args.block_size)))
