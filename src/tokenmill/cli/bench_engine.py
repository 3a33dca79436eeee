"""Measures the engine without HTTP: tokens/s, requests/s, TTFT and ITL (p50, p90, p99, in ms) for each workload."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.cli.options import add_engine_flags, positive
from tokenmill.cli.parser import Parser
from tokenmill.cli.table import table

if TYPE_CHECKING:
    from tokenmill.api.contract import TextEngine


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", default="demo", help="a folder, a hub name, or demo")
    parser.add_argument("--workload", nargs="+", default=["static:1x128x128", "static:16x128x128", "trace:50"],
                        help="static:BATCHxPROMPTxNEW, trace:COUNT, sampled:COUNT, prefill:BATCHxPROMPT, or standard: "
                        "the seven cases of docs/measurements.md")  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=1, help="runs of each workload")
    parser.add_argument("--concurrency", type=positive, help="most requests under way at once")
    parser.add_argument("--output-file", type=Path, help="append a JSON line for every run")
    add_engine_flags(parser)
    # Workloads repeat; reuse of the cache would measure something else. --enable-prefix-caching turns it on again.
    parser.set_defaults(engine_cache_prefix_caching=False)


async def measure(args: argparse.Namespace) -> None:
    from tokenmill.bench.engine import run_workload, warm_up
    from tokenmill.bench.report import HEADERS, append, record, row
    from tokenmill.bench.workload import parse
    from tokenmill.cli.engine import open_engine

    if args.output_file:
        append(args.output_file, [])  # a folder that cannot be written to is found out now
    started = time.perf_counter()
    opened = await open_engine(args, args.model)
    print(f"ready after {time.perf_counter() - started:.1f} s")
    vocab, context = opened.limits.vocab_size, opened.limits.max_model_tokens
    about, rows = about_run(args, opened), []
    try:
        await warm_up(opened.engine, vocab)
        for made in [w for name in args.workload for w in parse(name, vocab, context)]:
            for repeat in range(args.repeats):
                found = await run_workload(opened.engine, made, repeat, args.concurrency)
                rows.append(row(found))
                if found.failed:
                    print(f"{found.failed} requests of {made.name} failed, the first with: {found.first_error}")
                if args.output_file:
                    append(args.output_file, [record(found, about)])
    finally:
        await opened.close()
    print(table(HEADERS, rows))


def about_run(args: argparse.Namespace, engine: TextEngine) -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    from tokenmill.bench.report import machine

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    asked = {k.removeprefix("engine_"): v for k, v in vars(args).items() if k.startswith("engine_") and v is not None}
    return {**machine(device), "model": engine.name, "settings": asked}


def run(args: argparse.Namespace) -> int:
    asyncio.run(measure(args))
    return 0
