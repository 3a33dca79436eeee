"""Prints the names that --chat-template accepts, one a line, sorted; with --families the model families that load."""

from __future__ import annotations

import argparse

from tokenmill.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_switch("--families", "model families instead of chat templates")
    parser.add_argument("--engine", choices=("turbomind", "pytorch"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.families:
        from tokenmill.models.spec import family_names

        print(*sorted(family_names()), sep="\n")
    else:
        from tokenmill.tokenize.choose import builtin_names

        print(*sorted(builtin_names()), sep="\n")
    return 0
