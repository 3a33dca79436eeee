"""Whether a server keeps the promises of OpenAI's and Anthropic's APIs: a table; the exit code is 0 if it is whole."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from tokenmill import env
from tokenmill.cli.parser import Parser
from tokenmill.cli.table import table
from tokenmill.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from tokenmill.eval.conform.probe import Outcome

GROUPS = ("models", "chat", "completions", "streams", "errors", "structured", "tools", "responses", "messages",
          "lm_eval")  # fmt: skip


def add_arguments(parser: Parser) -> None:
    parser.add_argument("url", help="address of the server, such as http://localhost:23333")
    parser.add_argument("--api-key", help="the server's key; TOKENMILL_API_KEYS is read as well")
    parser.add_argument("--model-name", help="which of the server's models; the first by default")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="these groups of checks")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer (default: %(default)s)")
    parser.add_switch("--json", "one JSON object a check instead of a table")


def run(args: argparse.Namespace) -> int:
    import httpx

    from tokenmill.eval.conform.probe import Probe
    from tokenmill.eval.conform.probe import run as outcomes

    base = (args.url if "://" in args.url else f"http://{args.url}").rstrip("/").removesuffix("/v1")
    key = args.api_key or next(iter(env.api_keys()), None)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    found: list[Outcome] = []
    with httpx.Client(base_url=base, headers=headers, timeout=args.timeout) as client:
        probe = Probe(client, args.model_name or first_model(client))
        for outcome in outcomes(probe, tuple(args.only)):
            found.append(outcome)
            if sys.stderr.isatty():
                print("." if not outcome.reason else "F", end="", flush=True, file=sys.stderr)
    tell(found, args.json)
    return 1 if any(outcome.reason for outcome in found) else 0


def first_model(client: object) -> str:
    import httpx

    assert isinstance(client, httpx.Client)
    try:
        reply = client.get("/v1/models")
        if reply.status_code == 401:
            raise ConfigError(f"{client.base_url} asks for a key; give --api-key")
        return str(reply.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise RequestError(f"no server with /v1/models at {client.base_url}: {type(error).__name__}", 503) from None


def tell(rows: list[Outcome], as_json: bool) -> None:
    if as_json:
        for row in rows:
            print(json.dumps({"group": row.group, "promise": row.promise, "passed": not row.reason,
                              "reason": row.reason}))  # fmt: skip
        return
    print(table(("group", "result", "promise"), [(r.group, "FAIL" if r.reason else "pass", r.promise) for r in rows]))
    for row in rows:
        if row.reason:
            print(f"\n{row.group}: {row.promise}\n  {row.reason}")
    passed = sum(not row.reason for row in rows)
    print(f"\n{passed} of {len(rows)} kept")
