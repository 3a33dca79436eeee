"""Answers under random JSON schemas at temperature 1.5, from any server: each must be valid, a cut one is a failure.

    PYTHONPATH=src:. python scripts/schema_samples.py http://127.0.0.1:23333 --count 200
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import httpx
import jsonschema
from tests.support.schemas import random_schema


def ask(client: httpx.Client, model: str, seed: int, max_tokens: int) -> str:
    """What is wrong with the answer under schema number `seed`; empty where nothing is."""
    schema = random_schema(Random(seed), bounded=True)
    form = {"type": "json_schema", "json_schema": {"name": "random", "schema": schema}}
    body: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": "Answer."}], "temperature": 1.5, "seed": seed,
        "max_tokens": max_tokens, "response_format": form,
    }  # fmt: skip
    reply = client.post("/v1/chat/completions", json=body)
    if reply.status_code != 200:
        return f"{reply.status_code}: {reply.text[:200]}"
    choice = reply.json()["choices"][0]
    try:
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{choice['finish_reason']}: {str(error).splitlines()[0]}"
    return ""


def run(url: str, count: int, max_tokens: int, threads: int) -> list[str]:
    """One line for each answer that is wrong."""
    with httpx.Client(base_url=url, timeout=300) as client, ThreadPoolExecutor(threads) as pool:
        model = client.get("/v1/models").json()["data"][0]["id"]
        found = list(pool.map(lambda seed: ask(client, model, seed, max_tokens), range(count)))
    return [f"schema {seed}: {reason}" for seed, reason in enumerate(found) if reason]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    wrong = run(args.url, args.count, args.max_tokens, args.threads)
    print("\n".join([*wrong, f"{args.count - len(wrong)} of {args.count} are valid"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
