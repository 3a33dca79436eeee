"""Integer weights by GPTQ, symmetric, in GPTQ files that need no order of columns at run time."""

from __future__ import annotations

import argparse

from tokenmill.cli import lite
from tokenmill.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    lite.add_common(parser)
    lite.add_weight_options(parser)
    parser.add_switch("--w-sym", "symmetric codes", default=True)
    parser.add_switch("--act-order", "visit columns by importance, over fixed groups", default=True)
    parser.add_argument("--order", choices=("act", "group", "none"), help="of columns: by importance (act), group by "
                        "group and by importance within (group), as they lie (none); default: as --act-order says")
    parser.add_argument("--damp", type=float, default=0.01, help="added to the Hessian's diagonal, of its mean")


def run(args: argparse.Namespace) -> int:
    from tokenmill.quant.recipe import Recipe

    group = lite.group_of(args.w_group_size)
    order = args.order or ("act" if args.act_order else "none")
    return lite.quantize(args, Recipe("gptq", args.to, args.w_bits, group, args.w_sym, order, args.damp))
