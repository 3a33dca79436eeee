"""Server-sent events straight onto ASGI.

The first event decides the status: a failure before it is an ordinary error answer, a failure after it is an event of
the framing (OpenAI's: `{"error": ...}`) and the end mark. A stream silent for `ping_s` gets a comment. A client that
leaves, or that takes nothing for the transport's write_stall_s, ends the source at once, and with it the request in
the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokenmill.errors import RequestError
from tokenmill.serve.http.disconnect import CLIENT_GONE, unless_gone
from tokenmill.serve.http.errors import as_request_error, error_body, error_response

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    """`value` as one JSON event."""
    return b"data: " + _encode(value) + b"\n\n"


def named_event(value: dict[str, Any]) -> bytes:
    """The same under its own `type` as the event's name."""
    return b"event: " + str(value["type"]).encode() + b"\n" + event(value)


def _failure(error: RequestError) -> bytes:
    return event({"error": error_body(error.status, str(error), error.param, error.code)})


@dataclass(frozen=True, slots=True)
class Framing:
    """How a stream tells of a failure, and how it ends."""

    failure: Callable[[RequestError], bytes] = _failure
    end: bytes = DONE
    media_type: str = "text/event-stream"


OPENAI = Framing()


class EventStream(Response):
    """A response made of events as they come. `events` yields whole events as bytes; the end mark is added here.

    `ping_s` None sends no comments, for readers of plain JSON lines.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], ping_s: float | None, framing: Framing = OPENAI
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type=framing.media_type
        )
        self.framing = framing
        # A stream has no length; Response has set one for its empty body.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self.events = events
        self.ping_s = ping_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._run(scope, receive, send))
        except RequestError as error:
            # Nobody is left to be told.
            if error.status != CLIENT_GONE:
                raise

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = asyncio.ensure_future(anext(self.events, b""))
        try:
            await asyncio.wait((first,), timeout=self.ping_s)
            if first.done() and first.exception() is not None:
                error = as_request_error(first.exception())  # type: ignore[arg-type]
                await error_response(error)(scope, receive, send)
                return
            await self._pump(first, _Writer(send, self.ping_s))
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await self.events.aclose()

    async def _pump(self, first: asyncio.Future[bytes], writer: _Writer) -> None:
        try:
            await writer.start(self.status_code, self.raw_headers)
            try:
                await writer.write(await first)
                async for data in self.events:
                    await writer.write(data)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear that the answer is broken
                told = as_request_error(error)
                await writer.write(self.framing.failure(told))
            await writer.end(self.framing.end)
        finally:
            writer.stop()


class _Writer:
    """Sends events in order and a comment whenever nothing else was sent for `ping_s`."""

    def __init__(self, send: Send, ping_s: float | None) -> None:
        self._send = send
        self._ping_s = ping_s
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._last_s = self._loop.time()
        self._ping: asyncio.Task[None] | None = None
        self._timer = None if ping_s is None else self._loop.call_later(ping_s, self._tick)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        async with self._lock:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._last_s = self._loop.time()

    async def end(self, data: bytes) -> None:
        async with self._lock:
            self.stop()
            await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._ping is not None:
            self._ping.cancel()

    def _tick(self) -> None:
        assert self._ping_s is not None, "only a writer that pings ticks"
        silent_s = self._loop.time() - self._last_s
        if silent_s >= self._ping_s and not self._lock.locked():
            self._ping = self._loop.create_task(self.write(PING))
            silent_s = 0.0
        self._timer = self._loop.call_later(max(self._ping_s - silent_s, self._ping_s / 10), self._tick)
