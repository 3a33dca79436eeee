"""Measures a server: TTFT, ITL (p50, p90, p99, in ms), tokens/s, requests/s, for each workload.

Either one that runs (URL), or with --start MODEL one that is started for it, and then with --peer other engines' too,
one after the other: each has the machine to itself.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill import env
from tokenmill.cli.options import add_engine_flags
from tokenmill.cli.parser import Parser
from tokenmill.cli.peers import add_peer_flags, serve_all
from tokenmill.cli.table import table
from tokenmill.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from tokenmill.bench.peers.servers import Served
    from tokenmill.bench.timeline import Summary


def add_arguments(parser: Parser) -> None:
    parser.add_argument("url", nargs="?", help="address of the server, such as http://localhost:23333")
    parser.add_argument("--start", dest="model", metavar="MODEL", help="start servers of this model instead")
    parser.add_argument("--workload", nargs="+", default=["trace:100"], help="such as trace:1000, static:16x128x512")
    parser.add_argument("--model-name", help="which of the server's models; the first by default")
    parser.add_argument("--api-key", help="the server's key")
    parser.add_argument("--request-rate", type=float, nargs="+", help="requests per second on average; all at once by "
                        "default; several values: one run each")  # fmt: skip
    parser.add_argument("--concurrency", type=int, help="most requests under way at once")
    parser.add_argument("--vocab-size", type=int, default=92_000, help="draw prompt ids below this")
    parser.add_argument("--output-file", type=Path, help="append a JSON line for every run")
    add_peer_flags(parser)
    add_engine_flags(parser)


async def measure(args: argparse.Namespace, served: Served) -> list[Summary]:
    """A server that was just started gets a few short requests first."""
    from tokenmill.bench import report, serve, workload

    found = []
    key = args.api_key or next(iter(env.api_keys()), None)
    async with serve.open_client(served.url, key) as client:
        model = args.model_name or await first_model(client)
        if served.engine:
            warm = workload.Workload("warm-up", workload.warm_items(args.vocab_size))
            await serve.run_workload(client, warm, model, serve.Load(route=served.route))
        for name in args.workload:
            for made in workload.parse(name, args.vocab_size, args.engine_model_max_model_tokens):
                for rate in args.request_rate or [None]:
                    load = serve.Load(rate, args.concurrency, route=served.route)
                    found.append(await serve.run_workload(client, made, model, load))
                    if args.output_file:
                        about = {"server": served.url, "engine": served.engine, "model": model, "rate": rate}
                        report.append(args.output_file, [report.record(found[-1], about)])
                    if found[-1].failed:
                        print(f"{found[-1].failed} requests failed, the first with: {found[-1].first_error}")
    return found


async def first_model(client: object) -> str:
    import httpx

    assert isinstance(client, httpx.AsyncClient)
    try:
        response = await client.get("/v1/models")
        return str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        raise RequestError(f"no server with /v1/models at {client.base_url}: {error!r}", 503) from None


def run(args: argparse.Namespace) -> int:
    from tokenmill.bench.peers.servers import Served
    from tokenmill.bench.report import HEADERS, append, row
    from tokenmill.bench.serve import COMPLETIONS

    if bool(args.url) == bool(args.model):
        raise ConfigError("say which server: a URL, or --start MODEL for one that is started here; one of the two")
    if args.peer and args.url:
        raise ConfigError("--peer needs --start MODEL: a peer's server starts when ours has ended and freed the GPU")
    if args.output_file:
        append(args.output_file, [])  # a folder that cannot be written to is found out now
    if args.model:
        return serve_all(args, lambda served: asyncio.run(measure(args, served)))
    there = Served("", args.url, COMPLETIONS)
    print(table(HEADERS, [row(found) for found in asyncio.run(measure(args, there))]))
    return 0
