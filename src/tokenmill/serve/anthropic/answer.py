"""An answer in Anthropic's shape: content blocks at once, or events block by block."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from tokenmill.serve.http.errors import anthropic_error
from tokenmill.serve.http.service import Job, Service
from tokenmill.serve.http.sse import Framing, named_event
from tokenmill.serve.openai.collect import Collected
from tokenmill.types import Chunk, Finish, ToolCallDelta, Usage

# Clients send thinking back with its signature; ours says only where it came from.
SIGNATURE = "tokenmill-local"
FRAMING = Framing(failure=lambda error: named_event(anthropic_error(error)), end=b"")
_REASONS = {Finish.LENGTH: "max_tokens", Finish.STOP: "end_turn", Finish.ABORT: "end_turn", Finish.TIMEOUT: "end_turn"}


def message(job: Job, done: Collected) -> dict[str, Any]:
    """The whole answer."""
    content: list[dict[str, Any]] = []
    if done.reasoning:
        content.append({"type": "thinking", "thinking": "".join(done.reasoning), "signature": SIGNATURE})
    if done.text:
        content.append({"type": "text", "text": "".join(done.text)})
    for place in sorted(done.calls):
        call = done.calls[place]
        content.append({
            "type": "tool_use", "id": call["id"], "name": call["function"]["name"],
            "input": _object(call["function"]["arguments"]),
        })  # fmt: skip
    return {**_head(job, done.usage), "content": content, **_ending(job, done), "usage": _usage(done.usage)}


def _head(job: Job, usage: Usage) -> dict[str, Any]:
    return {"id": job.id, "type": "message", "role": "assistant", "model": job.model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": _usage(usage)}  # fmt: skip


def _usage(usage: Usage) -> dict[str, Any]:
    return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}


def _ending(job: Job, done: Collected) -> dict[str, Any]:
    if done.finish is Finish.STOP and done.calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if done.finish is Finish.STOP and done.stop_reason in job.requests[0].stop_strings:
        return {"stop_reason": "stop_sequence", "stop_sequence": done.stop_reason}
    return {"stop_reason": _REASONS.get(done.finish or Finish.ABORT, "end_turn"), "stop_sequence": None}


def _object(arguments: str) -> Any:
    """A call's arguments as an object; what the model wrote that is none is kept, under a name that says so."""
    try:
        value = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return {"_unparsed": arguments}
    return value if isinstance(value, dict) else {"_unparsed": arguments}


@dataclass(slots=True)
class Blocks:
    """Which block is open. Blocks follow each other; a tool call is a block of its own."""

    index: int = -1
    kind: str | None = None
    call: int = -1

    def feed(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        if chunk.reasoning:
            yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": chunk.reasoning})
        if chunk.text:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": chunk.text})
        for call in chunk.tool_calls:
            yield from self._tool(call)

    def close(self) -> Iterator[dict[str, Any]]:
        if self.kind is None:
            return
        if self.kind == "thinking":
            yield self._delta({"type": "signature_delta", "signature": SIGNATURE})
        yield {"type": "content_block_stop", "index": self.index}
        self.kind = None

    def _tool(self, call: ToolCallDelta) -> Iterator[dict[str, Any]]:
        if self.kind != "tool_use" or self.call != call.index:
            yield from self.close()
            self.call = call.index
            yield from self._open("tool_use", {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        if call.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self.kind == kind:
            return
        yield from self.close()
        self.index += 1
        self.kind = kind
        yield {"type": "content_block_start", "index": self.index, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self.index, "delta": delta}


async def events(service: Service, job: Job) -> AsyncGenerator[bytes, None]:
    """message_start, the blocks, message_delta with the reason, message_stop."""
    blocks, done, begun = Blocks(), Collected(), False
    async with aclosing(service.run(job)) as chunks:
        async for _, chunk in chunks:
            done.note_end(chunk)
            if not begun:
                begun = True
                start = Usage(prompt_tokens=chunk.usage.prompt_tokens or len(chunk.prompt_ids or ()))
                yield named_event({"type": "message_start", "message": _head(job, start)})
                yield named_event({"type": "ping"})
            for event in blocks.feed(chunk):
                yield named_event(event)
    for event in blocks.close():
        yield named_event(event)
    usage = {"output_tokens": done.usage.completion_tokens}
    yield named_event({"type": "message_delta", "delta": _ending(job, done), "usage": usage})
    yield named_event({"type": "message_stop"})
