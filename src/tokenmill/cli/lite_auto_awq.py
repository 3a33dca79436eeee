"""4-bit weights in AWQ files: searched scales, then GPTQ on the scaled weights. Shows how far the result is off."""

from __future__ import annotations

import argparse

from tokenmill.cli import lite
from tokenmill.cli.parser import Parser
from tokenmill.log import get_logger

METHODS = ("awq+gptq", "awq", "gptq", "rtn")


def add_arguments(parser: Parser) -> None:
    lite.add_common(parser)
    lite.add_weight_options(parser)
    parser.add_switch("--w-sym", "symmetric codes, which AWQ files hold with a zero of 8")
    parser.add_switch("--search-scale", "accepted; awq methods always search", default=None)
    parser.add_argument("--method", choices=METHODS, default="awq+gptq")
    parser.add_switch("--fast", "search on a quarter of the tokens, and half of the candidates")


def run(args: argparse.Namespace) -> int:
    from tokenmill.quant.recipe import Recipe

    if args.search_scale is False:
        get_logger().warning("--search-scale False: scales are searched all the same, it is part of the method")
    method = "rtn" if args.calib_samples == 0 else args.method
    if method != args.method:
        get_logger().warning("--calib-samples 0: weights are rounded to nearest, without data")
    search_tokens = lite.SEARCH_TOKENS[lite.device_of(args.device)] // (4 if args.fast else 1)
    return lite.quantize(
        args,
        Recipe(
            method, args.to, args.w_bits, lite.group_of(args.w_group_size), args.w_sym,
            duo=not args.fast, search_tokens=search_tokens,
        ),
    )  # fmt: skip
