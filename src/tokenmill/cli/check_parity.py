"""Compares a model with transformers, layer by layer, in fp32 on the CPU, and names the first layer that differs."""

from __future__ import annotations

import argparse

from tokenmill.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", help="a folder, a hub name, or demo")


def run(args: argparse.Namespace) -> int:
    from tokenmill.api.hub import resolve_model
    from tokenmill.models.parity import check_parity

    report = check_parity(resolve_model(args.model))
    print(report)
    return 0 if report.ok else 1
