"""Measures a running server: TTFT, ITL (p50, p90, p99, in ms), tokens/s, requests/s, for each workload."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from tokenmill import env
from tokenmill.cli.parser import Parser
from tokenmill.cli.table import table
from tokenmill.errors import RequestError


def add_arguments(parser: Parser) -> None:
    parser.add_argument("url", help="address of the server, such as http://localhost:23333")
    parser.add_argument("--workload", nargs="+", default=["trace:100"], help="such as trace:1000, static:16x128x512")
    parser.add_argument("--model-name", help="which of the server's models; the first by default")
    parser.add_argument("--api-key", help="the server's key")
    parser.add_argument("--request-rate", type=float, nargs="+", help="requests per second on average; all at once by "
                        "default; several values: one run each")  # fmt: skip
    parser.add_argument("--concurrency", type=int, help="most requests under way at once")
    parser.add_argument("--vocab-size", type=int, default=92_000, help="draw prompt ids below this")
    parser.add_argument("--max-model-tokens", type=int, help="leave out requests that are longer")
    parser.add_argument("--output-file", type=Path, help="append a JSON line for every run")


async def measure(args: argparse.Namespace) -> list[tuple[str, ...]]:
    from tokenmill.bench import report, serve, workload

    if args.output_file:
        report.append(args.output_file, [])  # a folder that cannot be written to is found out now
    rows, records = [], []
    key = args.api_key or next(iter(env.api_keys()), None)
    async with serve.open_client(args.url, key) as client:
        model = args.model_name or await first_model(client)
        for name in args.workload:
            for made in workload.parse(name, args.vocab_size, args.max_model_tokens):
                for rate in args.request_rate or [None]:
                    found = await serve.run_workload(client, made, model, serve.Load(rate, args.concurrency))
                    rows.append(report.row(found))
                    records.append(report.record(found, {"server": args.url, "model": model, "rate": rate}))
                    if found.failed:
                        print(f"{found.failed} requests failed, the first with: {found.first_error}")
    if args.output_file:
        report.append(args.output_file, records)
    return rows


async def first_model(client: object) -> str:
    import httpx

    assert isinstance(client, httpx.AsyncClient)
    try:
        response = await client.get("/v1/models")
        return str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        raise RequestError(f"no server with /v1/models at {client.base_url}: {error!r}", 503) from None


def run(args: argparse.Namespace) -> int:
    from tokenmill.bench.report import HEADERS

    rows = asyncio.run(measure(args))
    print(table(HEADERS, rows))
    return 0
