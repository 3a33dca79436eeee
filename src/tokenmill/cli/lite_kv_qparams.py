"""Scales of LMDeploy's first int8 KV cache, for its old workspaces. Tokenmill's cache needs none: --quant-policy 8."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenmill.cli.legacy import note
from tokenmill.cli.options import positive
from tokenmill.cli.parser import Parser
from tokenmill.errors import ConfigError


def add_arguments(parser: Parser) -> None:
    parser.add_argument("work_dir", type=Path, help="the --work-dir of lite calibrate")
    parser.add_argument("turbomind_dir", type=Path, help="the workspace's triton_models/weights")
    parser.add_argument("--kv-bits", type=int, default=8, help="8, as that cache had no other")
    parser.add_switch("--kv-sym", "symmetric: absmax / 127")
    parser.add_argument("--num-tp", type=positive, default=1, help="ranks of the workspace")
    parser.add_argument("--tm-params", nargs="*", default=[], metavar="K=V", help="accepted without effect")


def run(args: argparse.Namespace) -> int:
    from tokenmill.quant.kv_scales import write_scales

    if args.kv_bits != 8:
        raise ConfigError(f"--kv-bits {args.kv_bits}: that cache has 8 bits; 4 come without scales, --quant-policy 4")
    if args.tm_params:
        note("--tm-params has no effect: edit config.ini of the workspace")
    count = write_scales(args.work_dir, args.turbomind_dir, args.num_tp, args.kv_sym)
    print(f"wrote {count} past_kv_scale files into {args.turbomind_dir}")
    note("Tokenmill does not read them: its int8 cache scales every token and head by itself (--quant-policy 8)")
    return 0
