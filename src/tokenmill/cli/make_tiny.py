"""Writes a tiny random checkpoint with a working tokenizer, in the exact form of a real folder: for tests."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenmill.cli.parser import Parser
from tokenmill.errors import ConfigError


def add_arguments(parser: Parser) -> None:
    parser.add_argument("family", help="a model family, as `tokenmill list --families` prints them")
    parser.add_argument("folder", type=Path, help="where to write; must not hold a config.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--std", type=float, default=0.15, help="standard deviation of the weights")


def run(args: argparse.Namespace) -> int:
    from tokenmill.models.spec import family_names
    from tokenmill.models.tiny import make_tiny

    if args.family not in family_names():
        raise ConfigError(f"there is no family {args.family!r}; there are {', '.join(sorted(family_names()))}")
    if (args.folder / "config.json").exists():
        raise ConfigError(f"{args.folder} already holds a config.json; name another folder")
    make_tiny(args.family, args.folder, args.seed, args.std)
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    print(f"wrote a tiny {args.family} to {args.folder} ({size / 2**20:.1f} MiB)")
    return 0
