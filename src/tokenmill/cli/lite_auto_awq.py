"""4-bit weights in AWQ files: searched scales, then GPTQ on the scaled weights. Shows how far the result is off."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenmill.cli import lite
from tokenmill.cli.legacy import note
from tokenmill.cli.parser import Parser
from tokenmill.errors import ConfigError
from tokenmill.log import get_logger

METHODS = ("awq+gptq", "awq", "gptq", "rtn")


def add_arguments(parser: Parser) -> None:
    lite.add_common(parser)
    parser.add_argument("second", nargs="?", type=Path, metavar="WORK_DIR", help="the first generation's --work-dir")
    lite.add_weight_options(parser)
    parser.add_switch("--w-sym", "symmetric codes, which AWQ files hold with a zero of 8")
    parser.add_switch("--search-scale", "accepted; awq methods always search", default=None)
    parser.add_argument("--method", choices=METHODS, default="awq+gptq")
    parser.add_switch("--fast", "search on a quarter of the tokens, and half of the candidates")


def place_second(args: argparse.Namespace) -> None:
    """`auto_awq MODEL WORK_DIR` of the first generation; ConfigError where two folders are named."""
    if args.second is None:
        return
    if args.work_dir not in (lite.WORK_DIR, args.second):
        raise ConfigError(f"two folders to write to are named: {args.second} and --work-dir {args.work_dir}")
    args.work_dir = args.second


@contextmanager
def beside_calibration(folder: Path) -> Iterator[None]:
    """Puts away what `lite calibrate` left in `folder`, where the first generation wanted it; back if all fails."""
    if not is_calibration(folder):
        yield
        return
    kept = folder.with_name(f"{folder.name}-calibration")
    if kept.exists():
        raise ConfigError(f"{folder} holds the files of lite calibrate and {kept} exists: remove one, or name another")
    folder.rename(kept)
    note(f"auto_awq needs no lite calibrate; what it left in {folder} is now in {kept}")
    try:
        yield
    except BaseException:
        kept.rename(folder)
        raise


def is_calibration(folder: Path) -> bool:
    """Statistics and no model: a quantized folder may hold statistics, too."""
    return (folder / "inputs_stats.pth").is_file() and not (folder / "config.json").exists()


def run(args: argparse.Namespace) -> int:
    place_second(args)
    with beside_calibration(args.work_dir):
        return quantize(args)


def quantize(args: argparse.Namespace) -> int:
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
