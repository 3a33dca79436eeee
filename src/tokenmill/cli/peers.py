"""What the verbs of `bench` share about other engines: flags, the settings both sides get, and runs kept as lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.cli.options import engine_config, positive
from tokenmill.cli.parser import Parser
from tokenmill.cli.table import table
from tokenmill.errors import TokenmillError

if TYPE_CHECKING:
    from tokenmill.bench.peers.contract import Job, Settings
    from tokenmill.bench.peers.parent import Told
    from tokenmill.bench.peers.servers import Served
    from tokenmill.bench.timeline import Summary

PEERS = ("vllm", "lmdeploy", "transformers")


def add_peer_flags(parser: Parser) -> None:
    group = parser.add_argument_group("other engines")
    group.add_argument("--peer", nargs="+", choices=PEERS, default=[], help="run these installed engines too, one "
                       "after the other in processes of their own, and print ratios")  # fmt: skip
    group.add_argument("--peer-path", nargs="+", type=named_folder, default=[], metavar="NAME=FOLDER",
                       help="a folder with an engine's own packages (pip install --target)")  # fmt: skip
    group.add_argument("--peer-limit", type=positive, default=900, help="seconds each may take")


def named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if name not in PEERS or not Path(folder).is_dir():
        known = ", ".join(PEERS)
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER: a name of {known}, and a folder there is")
    return name, Path(folder)


def settings_of(args: argparse.Namespace, max_model_tokens: int | None = None) -> Settings:
    """From the engine's flags; names are resolved here, so that every engine opens the same folder."""
    from tokenmill.api.hub import resolve_model
    from tokenmill.bench.peers.contract import Settings

    config = engine_config(args, args.model)
    folder = resolve_model(config.model.path, config.model.revision, config.model.download_dir)
    return Settings(
        str(folder), config.model.dtype, config.cache.kv, config.cache.memory_frac, config.scheduler.max_rows or 256,
        config.model.max_model_tokens or max_model_tokens, config.parallel.tp, config.kernels.device,
    )  # fmt: skip


def run_engine(args: argparse.Namespace, job: Job) -> Told:
    """One engine's job in a child. A failure is told here; the others go on."""
    from tokenmill.bench.peers.parent import run_job

    told = run_job(job, dict(args.peer_path).get(job.engine), args.peer_limit)
    if told.failure:
        print(f"{job.engine}: {told.failure}", file=sys.stderr)
    return told


def run_all(args: argparse.Namespace, job: Job) -> list[Told]:
    """The same job for every peer that was asked for."""
    return [run_engine(args, replace(job, engine=name)) for name in args.peer]




def serve_all(args: argparse.Namespace, measure: Callable[[Served], list[Summary]]) -> int:
    """Our server, then every peer's, each alone on the machine; one that fails is told and the others go on."""
    from tokenmill.bench import compare
    from tokenmill.bench.peers.servers import serving

    settings, runs, failed = settings_of(args), [], False
    for engine in (compare.OURS, *args.peer):
        try:
            with serving(engine, settings, dict(args.peer_path).get(engine), args.peer_limit) as served:
                runs += [compare.Run(engine, found) for found in measure(served)]
        except TokenmillError as error:
            print(f"{engine}: {error}", file=sys.stderr)
            failed = True
    print(table(compare.HEADERS, compare.rows(runs)))
    return int(failed)
