"""The engine as everything above holds it: `start_engine` gives one, in this process or in its own.

    engine = await start_engine("tokenmill.runner.runner:make_runner", config, own_process=True)
    async for output in engine.generate(request): ...
    await engine.close()

An engine belongs to the event loop it was started on. The core sends one message a step; this side takes it apart and
wakes the requests concerned. When the engine is gone (crash, kill, close), every live request and every later one gets
EngineDeadError with the reason, at once, and `stats().alive` is False.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from typing import Any

from tokenmill.config import EngineConfig
from tokenmill.engine.contract import PARTS, Stats, StepOutputs
from tokenmill.engine.core import Compiler
from tokenmill.engine.link import CLOSED, Link, Order, Setup
from tokenmill.engine.local import ThreadLink
from tokenmill.engine.process import ProcessLink
from tokenmill.engine.stream import Stream
from tokenmill.errors import EngineDeadError, RequestError, TokenmillError
from tokenmill.types import Finish, Request, StepOutput

FINISHES = list(Finish)


async def start_engine(
    factory: str, config: EngineConfig, *, own_process: bool, compile_grammar: str | Compiler | None = None
) -> EngineClient:
    """A running engine over the runner that `factory` ("module:function", called with `config`) makes.

    `compile_grammar` is "module:function" too: called with `config`, once, when first needed, it gives a function from
    GrammarSpec to Matcher; without `own_process` that function itself will do. Raises what the factory raises
    (ConfigError, CapacityError, FormatError, as the same class from its own process too).
    """
    client = EngineClient()
    setup = Setup(factory, config, compile_grammar)
    link = ProcessLink(setup, client) if own_process else ThreadLink(setup, client)
    client.attach(link, await link.open())
    return client


class EngineClient:
    """`about`: what the runner says of itself (plain values; memory and times for a banner). Implements `Engine`."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {}
        self._link: Link | None = None
        self._streams: dict[int, Stream] = {}
        self._ids: dict[str, int] = {}
        self._asked: dict[int, asyncio.Future[Stats]] = {}
        self._ordered: dict[int, asyncio.Future[None]] = {}
        self._numbers = count()
        self._last = Stats()
        self._dead: str | None = None
        self._closing: asyncio.Task[None] | None = None

    def attach(self, link: Link, about: dict[str, Any]) -> None:
        self._link, self.about = link, about

    # ---- Engine

    async def generate(self, request: Request) -> AsyncIterator[StepOutput]:
        stream = self._enter(request)
        try:
            is_last = False
            while not is_last:
                await stream.ready()
                output = stream.take()
                is_last = output.finish is not None
                yield output
        finally:
            self._leave(stream)

    async def score(self, request: Request) -> StepOutput:
        stream = self._enter(request)
        try:
            await stream.ready(whole=True)
            return stream.take()
        finally:
            self._leave(stream)

    def abort(self, request_id: str) -> None:
        handle = self._ids.get(request_id)
        if handle is not None and self._link is not None:
            self._link.abort(handle)

    async def stats(self) -> Stats:
        if self._dead is not None or self._link is None:
            return self._last_stats()
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self._link.ask_stats(number)
        try:
            self._last = await self._asked[number]
        finally:
            del self._asked[number]
        return self._last

    async def sleep(self, level: int = 1) -> None:
        if level not in (1, 2):
            raise RequestError(f"level is {level}; it must be 1 (weights to the host) or 2 (dropped)", param="level")
        await self._order(Order("sleep", level))

    async def wakeup(self, tags: tuple[str, ...] = ()) -> None:
        if unknown := [tag for tag in tags if tag not in PARTS]:
            raise RequestError(f"tags has {unknown[0]!r}; tags are {', '.join(PARTS)}", param="tags")
        await self._order(Order("wake", tags=tags))

    async def _order(self, order: Order) -> None:
        if self._dead is not None or self._link is None:
            raise EngineDeadError(self._dead or "the engine has not started")
        number = next(self._numbers)
        self._ordered[number] = asyncio.get_running_loop().create_future()
        self._link.control(number, order)
        try:
            await self._ordered[number]
        finally:
            del self._ordered[number]

    async def close(self) -> None:
        """Live requests end with ABORT; the runner is closed. Calling again waits for the same end."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._link is not None:
            await self._link.close()
        self.hear_end(CLOSED)

    # ---- streams

    def _enter(self, request: Request) -> Stream:
        if self._dead is not None or self._link is None:
            raise EngineDeadError(self._dead or "the engine has not started")
        if request.id in self._ids:
            raise RequestError(f"a request with id {request.id!r} is running; ids must differ", param="request_id")
        stream = Stream(request, next(self._numbers))
        self._link.submit(stream.handle, request)
        self._streams[stream.handle] = stream
        self._ids[request.id] = stream.handle
        return stream

    def _leave(self, stream: Stream) -> None:
        del self._streams[stream.handle]
        del self._ids[stream.request.id]
        if not stream.ended and self._link is not None:
            self._link.abort(stream.handle)

    def _last_stats(self) -> Stats:
        """What is known of an engine that is gone."""
        return replace(self._last, running=0, waiting=0, blocks_free=self._last.blocks_total, alive=False)

    # ---- Listener

    def hear(self, outputs: StepOutputs) -> None:
        tokens, extras, at = outputs.tokens.tolist(), outputs.extras, 0
        rows = zip(outputs.handles.tolist(), outputs.counts.tolist(), outputs.finishes.tolist(), strict=True)
        for handle, number, finish in rows:
            stream = self._streams.get(handle)
            if stream is not None:
                ending = FINISHES[finish] if finish >= 0 else None
                stream.put(tokens[at : at + number], ending, extras.get(handle))
            at += number

    def hear_stats(self, number: int, stats: Stats) -> None:
        asked = self._asked.get(number)
        if asked is not None and not asked.done():
            asked.set_result(stats)

    def hear_obeyed(self, number: int, error: Exception | None) -> None:
        waiting = self._ordered.get(number)
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        elif isinstance(error, TokenmillError) and not isinstance(error, EngineDeadError):
            waiting.set_exception(error)
        else:
            waiting.set_exception(RequestError(f"this engine cannot sleep: {error}", 501))

    def hear_end(self, reason: str) -> None:
        if self._dead is not None:
            return
        self._dead = reason
        for stream in self._streams.values():
            stream.fail(reason)
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(self._last_stats())
        for waiting in self._ordered.values():
            if not waiting.done():
                waiting.set_exception(EngineDeadError(reason))
