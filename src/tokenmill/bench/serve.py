"""Sends a workload to a server: `/v1/completions` with token ids, streamed, one connection a request, as clients do.

Works with any server that has OpenAI's route and takes token ids (`ignore_eos` is sent; a server that does not know it
may end earlier, and its own count of tokens is used), or LMDeploy's `/generate`. The times are the client's.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from tokenmill.bench.timeline import Summary, Timeline, summarize
from tokenmill.bench.workload import Item, Workload

COMPLETIONS, GENERATE = "/v1/completions", "/generate"


@dataclass(frozen=True, slots=True)
class Load:
    """How requests arrive: `per_s` on average, at exponential intervals (None: all at once), `concurrency` at most."""

    per_s: float | None = None
    concurrency: int | None = None
    seed: int = 0
    route: str = COMPLETIONS


def body_of(item: Item, workload: Workload, model: str, route: str = COMPLETIONS) -> dict[str, Any]:
    if route == GENERATE:
        return native_body(item, workload)
    return {
        "model": model,
        "prompt": list(item.prompt_ids),
        "max_tokens": item.new_tokens,
        "temperature": workload.temperature,
        "top_p": workload.top_p,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def native_body(item: Item, workload: Workload) -> dict[str, Any]:
    """LMDeploy's own route: temperature 0 is its word for greedy too."""
    return {
        "input_ids": list(item.prompt_ids),
        "max_tokens": item.new_tokens,
        "temperature": workload.temperature,
        "top_p": workload.top_p,
        "top_k": 0 if workload.temperature else 1,
        "ignore_eos": True,
        "stream": True,
    }


async def read_events(response: httpx.Response, line: Timeline) -> None:
    """Counts one token a message, then corrects the last by the server's own count."""
    total = 0
    async for text in response.aiter_lines():
        data = text.removeprefix("data:").strip()
        if not text.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        if event.get("error") or event.get("object") == "error":
            raise ValueError(str(event.get("message") or event["error"]))
        total = (event.get("usage") or event.get("meta_info") or {}).get("completion_tokens") or total
        line.got(len(event.get("output_ids") or ()))
        if any(choice.get("text") for choice in event.get("choices") or ()):
            line.got(1)
    missing = total - line.new_tokens
    if total and missing and line.messages:
        # Half characters and stop tokens have no text of their own: their time is the last message's.
        line.messages[-1] = (line.messages[-1][0], max(line.messages[-1][1] + missing, 0))


async def send(client: httpx.AsyncClient, item: Item, body: dict[str, Any], route: str) -> Timeline:
    line = Timeline(len(item.prompt_ids))
    try:
        async with client.stream("POST", route, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                line.end(f"{response.status_code}: {response.text[:200]}")
                return line
            await read_events(response, line)
    except (httpx.HTTPError, ValueError) as error:
        line.end(repr(error))
        return line
    line.end()
    return line


def arrivals_s(count: int, load: Load) -> np.ndarray[Any, np.dtype[np.float64]]:
    """When each request is sent, from the start: a Poisson process, or zeros."""
    if load.per_s is None:
        return np.zeros(count)
    return np.cumsum(np.random.default_rng(load.seed).exponential(1.0 / load.per_s, count))


async def run_workload(client: httpx.AsyncClient, workload: Workload, model: str, load: Load = Load()) -> Summary:
    """All requests of `workload` to the server behind `client`."""
    gate = asyncio.Semaphore(load.concurrency or len(workload.items))

    async def one(item: Item, delay_s: float) -> Timeline:
        await asyncio.sleep(delay_s)
        async with gate:
            return await send(client, item, body_of(item, workload, model, load.route), load.route)

    when = arrivals_s(len(workload.items), load)
    timelines = await asyncio.gather(*(one(i, float(t)) for i, t in zip(workload.items, when, strict=True)))
    rate = f" at {load.per_s:g}/s" if load.per_s else ""
    return summarize(workload.name + rate, timelines)


def open_client(url: str, api_key: str | None = None) -> httpx.AsyncClient:
    """A client for `url` (with or without `/v1`) that holds any number of streams."""
    base = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx.AsyncClient(base_url=base, headers=headers, timeout=httpx.Timeout(30, read=600), limits=limits)
