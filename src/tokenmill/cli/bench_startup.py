"""Times a start from nothing to the first token, phase by phase; with --peer beside other engines'."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.cli.options import add_engine_flags, positive
from tokenmill.cli.parser import Parser
from tokenmill.cli.peers import add_peer_flags, run_engine, settings_of
from tokenmill.cli.table import table

if TYPE_CHECKING:
    from tokenmill.bench.peers.parent import Told


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", default="demo", help="a folder, a hub name, or demo")
    parser.add_argument("--repeats", type=positive, default=1, help="starts of ours; the first may find cold caches")
    parser.add_argument("--output-file", type=Path, help="append a JSON line for every start")
    add_peer_flags(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from tokenmill.bench import startup
    from tokenmill.bench.compare import OURS
    from tokenmill.bench.report import append
    from tokenmill.models.spec import read_config

    if args.output_file:
        append(args.output_file, [])  # a folder that cannot be written to is found out now
    settings = settings_of(args)
    job = startup.job(settings, int(read_config(settings.model)["vocab_size"]))
    ours, failed = [], False
    for name in [*[OURS] * args.repeats, *args.peer]:
        told = run_engine(args, replace(job, engine=name))
        failed |= bool(told.failure)
        if told.failure:
            continue
        if args.output_file:
            append(args.output_file, [line(args, told)])
        print(f"{name} {told.version}")
        print(table(startup.HEADERS, startup.rows(told)))
        total = sum(startup.phases(told).values())
        if name == OURS:
            ours.append(total)
        elif ours:
            print(f"ours starts in {min(ours) / total:.2f} of {name}'s time")
    return int(failed)


def line(args: argparse.Namespace, told: Told) -> dict[str, Any]:
    from tokenmill.bench import startup
    from tokenmill.bench.report import machine

    phases = startup.phases(told)
    about = {"case": "startup", "engine": told.engine, "version": told.version, "model": args.model}
    return {**about, "first_token_s": sum(phases.values()), "phases_s": phases, "inside_s": told.phases, **machine("")}
