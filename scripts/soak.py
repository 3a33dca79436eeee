#!/usr/bin/env python3
"""A server under load: many streams at once, some of whose clients leave, and a SIGTERM among them.

    scripts/soak.py [--clients 64 --killed 20 --queued 10 --tokens 48] -- tokenmill serve api_server demo
    scripts/soak.py --url http://127.0.0.1:23333          (a server that runs already: no SIGTERM, no exit code)

Starts the command (with `--server-name 127.0.0.1 --server-port 0` added), waits until it is ready, and then:
1. asks each of four prompts alone, greedily;
2. asks with all clients at once: `queued` leave before they hear anything, `killed` in mid-stream, all others must get
   the same text as alone, to its last token and end mark;
3. waits until the server's own figures say that nothing is left: running, waiting, cache blocks;
4. asks with half as many clients and sends SIGTERM among them: every answer must still come whole, and the exit be 0.
Prints one JSON line and ends with 0, or with 1 and what failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

PROMPTS = ("Tell me about foxes.", "12 + 30 = ?", "写一个童话故事", "Name three colours and why you like them.")
LEFT = ("num_requests_running", "num_requests_waiting", "num_api_requests_waiting", "num_api_requests_routed",
        "gpu_cache_usage_perc")  # fmt: skip
INSIDE = ("num_requests_running", "num_requests_waiting", "num_api_requests_waiting")
READY_S, SETTLE_S, EXIT_S = 300.0, 60.0, 90.0


class SoakError(Exception):
    """What did not hold, in one line."""


@dataclass(frozen=True)
class Answer:
    text: str
    finish: str | None
    tokens: int
    ended: bool


@dataclass
class Client:
    http: httpx.AsyncClient
    model: str
    tokens: int

    @asynccontextmanager
    async def ask(self, place: int) -> AsyncIterator[AsyncIterator[str]]:
        body = {
            "model": self.model, "messages": [{"role": "user", "content": PROMPTS[place % len(PROMPTS)]}],
            "temperature": 0, "max_tokens": self.tokens, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                raise SoakError(f"status {reply.status_code}: {(await reply.aread())[:200]!r}")
            yield reply.aiter_lines()

    async def whole(self, place: int, begun: asyncio.Event | None = None) -> Answer:
        """One answer to its end. `begun` is set with the first event."""
        text, finish, tokens, ended = "", None, 0, False
        async with self.ask(place) as lines:
            async for line in lines:
                if begun is not None:
                    begun.set()
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    part = json.loads(line[6:])
                    if "error" in part:
                        raise SoakError(f"an answer broke off: {part['error']}")
                    for choice in part["choices"]:
                        text += choice["delta"]["content"]
                        finish = choice.get("finish_reason") or finish
                    tokens = (part.get("usage") or {}).get("completion_tokens", tokens)
        return Answer(text, finish, tokens, ended)

    async def leave(self, place: int, after: int) -> bool:
        """Goes away after so many events. True where the answer was not over by then."""
        async with self.ask(place) as lines:
            seen = 0
            async for line in lines:
                seen += line.startswith("data: {")
                if line == "data: [DONE]":
                    return False
                if seen > after:
                    return True
        return False

    async def leave_queue(self, place: int) -> bool:
        """Goes away 50 ms after asking, whatever came; True where nothing had come."""
        heard = asyncio.Event()
        task = asyncio.create_task(self.whole(place, heard))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return not heard.is_set()


async def figures(http: httpx.AsyncClient) -> dict[str, float]:
    """What the server says is left."""
    text = (await http.get("/metrics")).text
    found = re.findall(r"^lmdeploy:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found if name in LEFT}


async def settle(http: httpx.AsyncClient) -> float:
    """Seconds until nothing is left."""
    started = time.monotonic()
    while any((left := await figures(http)).values()):
        if time.monotonic() - started > SETTLE_S:
            raise SoakError(f"still there after {SETTLE_S:g} s: {left}")
        await asyncio.sleep(0.05)
    if set(left) != set(LEFT):
        raise SoakError(f"/metrics does not tell {sorted(set(LEFT) - set(left))}")
    return time.monotonic() - started


async def all_inside(http: httpx.AsyncClient, tasks: list[asyncio.Task[Answer]]) -> None:
    """Until the server has all of these requests and none has ended; at once where one has."""
    while not any(task.done() for task in tasks):
        found = await figures(http)
        if sum(found.get(name, 0.0) for name in INSIDE) >= len(tasks):
            return
        await asyncio.sleep(0.005)


def check_whole(answers: list[Answer], alone: list[Answer], tokens: int) -> None:
    for place, answer in enumerate(answers):
        if answer != alone[place % len(alone)]:
            raise SoakError(f"answer {place} is {answer}, alone it was {alone[place % len(alone)]}")
        if (answer.finish, answer.tokens, answer.ended) != ("length", tokens, True):
            raise SoakError(f"answer {place} is not whole: {answer}")


async def crowd(client: Client, options: argparse.Namespace, alone: list[Answer]) -> dict[str, Any]:
    """Step 2. Those who stay are in first, so that whoever leaves the queue has them before it."""
    killed, queued = options.killed, options.queued
    stay = options.clients - killed - queued
    started = time.monotonic()
    whole = [asyncio.create_task(client.whole(i)) for i in range(stay)]
    await all_inside(client.http, whole)
    leaving = [asyncio.create_task(client.leave(i, after=1 + i % 7)) for i in range(killed)]
    await asyncio.sleep(0)
    from_queue = await asyncio.gather(*(client.leave_queue(i) for i in range(queued)))
    answers, left = await asyncio.gather(*whole), await asyncio.gather(*leaving)
    check_whole(answers, alone, client.tokens)
    if sum(left) < killed or sum(from_queue) < queued:
        raise SoakError(
            f"{sum(left)} of {killed} left in mid-stream and {sum(from_queue)} of {queued} in the queue; "
            "the load is too light: raise --tokens or --clients, or lower the server's --max-batch-size"
        )
    return {"whole": stay, "killed": sum(left), "left_queue": sum(from_queue),
            "crowd_s": round(time.monotonic() - started, 2)}  # fmt: skip


async def last_call(client: Client, server: Server, count: int, alone: list[Answer]) -> dict[str, Any]:
    """Step 4."""
    begun = [asyncio.Event() for _ in range(count)]
    tasks = [asyncio.create_task(client.whole(i, begun[i])) for i in range(count)]
    await begun[0].wait()
    await all_inside(client.http, tasks)
    server.process.send_signal(signal.SIGTERM)
    answers = await asyncio.gather(*tasks)
    check_whole(answers, alone, client.tokens)
    code = await asyncio.to_thread(server.process.wait, EXIT_S)
    if code != 0:
        raise SoakError(f"the server ended with {code}")
    return {"answers_after_sigterm": len(answers), "exit": code}


class Server:
    """The command under test, with its first lines read for the address."""

    def __init__(self, command: list[str]) -> None:
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            [*command, "--server-name", "127.0.0.1", "--server-port", "0"], stdout=subprocess.PIPE, text=True
        )
        self.url = self._address()

    def _address(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.search(r"https?://\S+:\d+", line)
            if found:
                return found[0]
        raise SoakError(f"the server ended with {self.process.wait()} before it said where it listens")

    async def ready_s(self, http: httpx.AsyncClient) -> float:
        while (await http.get("/health/ready")).status_code != 200:
            if self.process.poll() is not None or time.monotonic() - self.started_s > READY_S:
                raise SoakError(f"the server was not ready within {READY_S:g} s")
            await asyncio.sleep(0.02)
        return time.monotonic() - self.started_s


async def soak(url: str, server: Server | None, options: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        report: dict[str, Any] = {}
        if server is not None:
            report["ready_s"] = round(await server.ready_s(http), 2)
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        client = Client(http, model, options.tokens)
        alone = [await client.whole(place) for place in range(len(PROMPTS))]
        report |= await crowd(client, options, alone)
        report["settled_s"] = round(await settle(http), 2)
        if server is not None:
            report |= await last_call(client, server, options.clients // 2, alone)
        return report


def run(options: argparse.Namespace) -> dict[str, Any]:
    if options.url:
        return asyncio.run(soak(options.url, None, options))
    server = Server(options.command)
    try:
        return asyncio.run(soak(server.url, server, options))
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--killed", type=int, default=20)
    parser.add_argument("--queued", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("command", nargs="*", help="the server's command, after --")
    options = parser.parse_args()
    if not options.url and not options.command:
        parser.error("give --url, or a command after --")
    try:
        print(json.dumps(run(options)))
    except (SoakError, httpx.HTTPError) as error:
        print(f"soak: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
