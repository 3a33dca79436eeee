"""A response as events: one item open at a time, every event with its place in the sequence.

A failure before the first token is an ordinary error answer; a later one is `response.failed`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tokenmill.errors import RequestError
from tokenmill.serve.http.service import Service
from tokenmill.serve.http.sse import Framing, named_event
from tokenmill.serve.openai.collect import Collected
from tokenmill.serve.responses.answer import (
    Asked,
    call_item,
    message_item,
    new_id,
    reasoning_item,
    response,
    status_of,
    text_part,
)
from tokenmill.types import Chunk, ToolCallDelta

Event = dict[str, Any]


@dataclass(slots=True)
class Open:
    """The item under way."""

    kind: str
    id: str
    index: int
    text: str = ""
    call: ToolCallDelta | None = None

    @property
    def place(self) -> Event:
        return {"item_id": self.id, "output_index": self.index}

    @property
    def part(self) -> Event:
        return {**self.place, "content_index": 0}


@dataclass(slots=True)
class Items:
    """Finished items, and the events that lead there."""

    output: list[dict[str, Any]] = field(default_factory=list)
    open: Open | None = None

    def feed(self, chunk: Chunk) -> Iterator[Event]:
        if chunk.reasoning:
            now = yield from self._need("reasoning", "rs", None)
            now.text += chunk.reasoning
            yield {"type": "response.reasoning_text.delta", **now.part, "delta": chunk.reasoning}
        if chunk.text:
            now = yield from self._need("message", "msg", None)
            now.text += chunk.text
            yield {"type": "response.output_text.delta", **now.part, "delta": chunk.text, "logprobs": []}
        for call in chunk.tool_calls:
            now = yield from self._need("function_call", "fc", call)
            now.text += call.arguments
            yield {"type": "response.function_call_arguments.delta", **now.place, "delta": call.arguments}

    def close(self) -> Iterator[Event]:
        now, self.open = self.open, None
        if now is None:
            return
        if now.kind == "message":
            item = message_item(now.id, now.text, "completed")
            yield {"type": "response.output_text.done", **now.part, "text": now.text, "logprobs": []}
            yield {"type": "response.content_part.done", **now.part, "part": text_part(now.text)}
        elif now.kind == "reasoning":
            item = reasoning_item(now.id, now.text)
            yield {"type": "response.reasoning_text.done", **now.part, "text": now.text}
        else:
            assert now.call is not None, "a function call opens with its call"
            item = call_item(now.id, now.call.id, now.call.name, now.text)
            yield {"type": "response.function_call_arguments.done", **now.place, "arguments": now.text,
                   "name": now.call.name}  # fmt: skip
        self.output.append(item)
        yield {"type": "response.output_item.done", "output_index": now.index, "item": item}

    def ensure_one(self) -> Iterator[Event]:
        """An answer without a word is a message without text."""
        if not self.output and self.open is None:
            yield from self._need("message", "msg", None)

    def _need(self, kind: str, prefix: str, call: ToolCallDelta | None) -> Generator[Event, None, Open]:
        now = self.open
        same_call = now is not None and (call is None or (now.call is not None and now.call.index == call.index))
        if now is not None and now.kind == kind and same_call:
            return now
        yield from self.close()
        now = self.open = Open(kind, new_id(prefix), len(self.output), call=call)
        yield {"type": "response.output_item.added", "output_index": now.index, "item": _blank(now)}
        if kind == "message":
            yield {"type": "response.content_part.added", **now.part, "part": text_part("")}
        return now


def _blank(now: Open) -> dict[str, Any]:
    if now.kind == "message":
        return message_item(now.id, None, "in_progress")
    if now.kind == "reasoning":
        return {**reasoning_item(now.id, ""), "content": [], "status": "in_progress"}
    assert now.call is not None, "a function call opens with its call"
    return call_item(now.id, now.call.id, now.call.name, "", "in_progress")


class Numbered:
    """Gives every event its number."""

    def __init__(self) -> None:
        self.next = 0

    def __call__(self, value: Event) -> bytes:
        self.next += 1
        return named_event({**value, "sequence_number": self.next - 1})


def framing(asked: Asked, number: Numbered) -> Framing:
    def failure(error: RequestError) -> bytes:
        failed = response(asked, "failed", [])
        failed["error"] = {"code": "server_error", "message": str(error)}
        return number({"type": "response.failed", "response": failed})

    return Framing(failure=failure, end=b"")


async def events(service: Service, asked: Asked, number: Numbered) -> AsyncGenerator[bytes, None]:
    items, done, begun = Items(), Collected(), False
    async with aclosing(service.run(asked.job)) as chunks:
        async for _, chunk in chunks:
            done.note_end(chunk)
            if not begun:
                begun = True
                for kind in ("response.created", "response.in_progress"):
                    yield number({"type": kind, "response": response(asked, "in_progress", [])})
            for event in items.feed(chunk):
                yield number(event)
    for event in (*items.ensure_one(), *items.close()):
        yield number(event)
    status = status_of(done.finish)
    yield number({"type": f"response.{status}", "response": response(asked, status, items.output, done.usage)})
