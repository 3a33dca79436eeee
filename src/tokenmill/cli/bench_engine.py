"""Measures the engine without HTTP: tokens/s, requests/s, TTFT and ITL (p50, p90, p99, in ms) for each workload.

With --peer, other engines run the same requests afterwards, once each, when ours is closed and its memory free.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.cli.options import add_engine_flags, positive
from tokenmill.cli.parser import Parser
from tokenmill.cli.peers import add_peer_flags, run_all, settings_of
from tokenmill.cli.table import table

if TYPE_CHECKING:
    from tokenmill.api.contract import TextEngine
    from tokenmill.bench.compare import Ledger, Rates
    from tokenmill.bench.peers.contract import Job


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", default="demo", help="a folder, a hub name, or demo")
    parser.add_argument("--workload", nargs="+", default=["static:1x128x128", "static:16x128x128", "trace:50"],
                        help="static:BATCHxPROMPTxNEW, trace:COUNT, sampled:COUNT, prefill:BATCHxPROMPT, or standard: "
                        "the seven cases of docs/measurements.md")  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=1, help="runs of each workload")
    parser.add_argument("--concurrency", type=positive, help="most requests under way at once")
    parser.add_argument("--ceilings", action="store_true", help="measure this machine's memory first, and print what "
                        "share of it static workloads move")  # fmt: skip
    parser.add_argument("--output-file", type=Path, help="append a JSON line for every run")
    add_peer_flags(parser)
    add_engine_flags(parser)
    # Workloads repeat; reuse of the cache would measure something else. --enable-prefix-caching turns it on again.
    parser.set_defaults(engine_cache_prefix_caching=False)


async def measure(args: argparse.Namespace, rates: Rates | None) -> tuple[Ledger, Job | None]:
    """Our runs, and the job that makes a peer do the same."""
    from tokenmill.bench.compare import OURS
    from tokenmill.bench.engine import run_workload, warm_up
    from tokenmill.bench.peers.contract import Job
    from tokenmill.bench.workload import parse, warm_items
    from tokenmill.cli.engine import open_engine

    started = time.perf_counter()
    opened = await open_engine(args, args.model)
    print(f"ready after {time.perf_counter() - started:.1f} s")
    vocab, context = opened.limits.vocab_size, opened.limits.max_model_tokens
    ledger = ledger_of(args, opened, rates)
    try:
        await warm_up(opened.engine, vocab)
        workloads = tuple(w for name in args.workload for w in parse(name, vocab, context))
        for made in workloads:
            for repeat in range(args.repeats):
                found = await run_workload(opened.engine, made, repeat, args.concurrency)
                ledger.add(OURS, found)
                if found.failed:
                    print(f"{found.failed} requests of {made.name} failed, the first with: {found.first_error}")
    finally:
        await opened.close()
    return ledger, Job("", settings_of(args, context), workloads, warm_items(vocab)) if args.peer else None


def ledger_of(args: argparse.Namespace, engine: TextEngine, rates: Rates | None) -> Ledger:
    """Where runs are kept, with what the numbers depend on."""
    import torch

    from tokenmill.bench.compare import Ledger, Traffic
    from tokenmill.bench.report import machine

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    asked = {k.removeprefix("engine_"): v for k, v in vars(args).items() if k.startswith("engine_") and v is not None}
    about = {**machine(device), "model": engine.name, "settings": asked}
    traffic = Traffic.of(getattr(engine.engine, "about", {}), config_of(args)) if rates else None
    return Ledger(about, args.output_file, traffic, rates)


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    from tokenmill.models.spec import read_config

    return read_config(settings_of(args).model)


def run(args: argparse.Namespace) -> int:
    from tokenmill.bench import compare
    from tokenmill.bench.report import HEADERS, append, row

    if args.output_file:
        append(args.output_file, [])  # a folder that cannot be written to is found out now
    rates = rates_here() if args.ceilings else None
    ledger, job = asyncio.run(measure(args, rates))
    print(table(HEADERS, [row(run.summary) for run in ledger.runs]))
    told = run_all(args, job) if job else []
    for peer in told:
        for summary in peer.summaries:
            ledger.add(peer.engine, summary, peer.version)
    if args.peer or rates:
        print(table(compare.HEADERS, ledger.rows()))
    return 1 if any(peer.failure for peer in told) else 0


def rates_here() -> Rates:
    from tokenmill.bench.ceilings import memory_rates_apart
    from tokenmill.bench.compare import Rates

    rates = Rates(*memory_rates_apart())
    print(f"memory: copy {rates.copy / 1e9:.1f} GB/s (read and written), read {rates.read / 1e9:.1f} GB/s")
    return rates
