"""8-bit weights and activations (W8A8): SmoothQuant for int8; fp8 with one scale per out-feature."""

from __future__ import annotations

import argparse

from tokenmill.cli import lite
from tokenmill.cli.parser import Parser
from tokenmill.errors import ConfigError

DTYPES = ("int8", "fp8", "float8_e4m3fn", "float8_e5m2")


def add_arguments(parser: Parser) -> None:
    lite.add_common(parser)
    parser.add_argument("--quant-dtype", choices=DTYPES, default="int8", help="fp8 is float8_e4m3fn")
    parser.add_switch("--search-scale", "accepted; how far to smooth is always searched", default=None)


def run(args: argparse.Namespace) -> int:
    from tokenmill.quant.recipe import Recipe

    if args.quant_dtype == "float8_e5m2":
        raise ConfigError("--quant-dtype float8_e5m2 is read, not made: float8_e4m3fn is closer at the same size")
    if args.quant_dtype != "int8":
        return lite.quantize(args, Recipe("fp8", fp8="channel"))
    search_tokens = lite.SEARCH_TOKENS[lite.device_of(args.device)]
    return lite.quantize(args, Recipe("smoothquant", search_tokens=search_tokens))
