"""Activation statistics in LMDeploy's files. Tokenmill's own methods need none: each calibrates as it goes."""

from __future__ import annotations

import argparse

from tokenmill.cli import lite
from tokenmill.cli.legacy import note
from tokenmill.cli.parser import Parser
from tokenmill.cli.progress import progress


def add_arguments(parser: Parser) -> None:
    lite.add_common(parser)
    parser.add_switch("--search-scale", "accepted; lite auto_awq searches by itself", default=None)


def run(args: argparse.Namespace) -> int:
    import torch

    from tokenmill.quant.calibrate import FILES, calibrate_folder

    for flag, given in (("--resume", args.resume), ("--max-kl", args.max_kl), ("--search-scale", args.search_scale)):
        if given:
            note(f"{flag} has no meaning for calibrate")
    source, tokens = lite.read_tokens(args)
    with progress("calibrate", "blocks") as show:
        calibrate_folder(source, args.work_dir, tokens, torch.device(lite.device_of(args.device)), show)
    print(f"wrote {', '.join(f'{name}_stats.pth' for name in FILES)} and model.safetensors into {args.work_dir}")
    return 0
