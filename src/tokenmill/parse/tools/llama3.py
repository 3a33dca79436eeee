"""Llama 3.1 and later: `<|python_tag|>` + JSON {name, parameters}, several set apart by semicolons, to the end.

`<function=NAME>{...}</function>`, the other form of Llama 3.1, is read too, and an answer that is nothing but such a
JSON object, since the models often leave the tag out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenmill.parse.calls import TaggedCalls, call_of, from_json, to_json
from tokenmill.parse.events import Event, ToolCallEvent
from tokenmill.parse.forms import Frame, json_call
from tokenmill.types import Message

TAG, FUNCTION, END = "<|python_tag|>", "<function=", "</function>"
TAGS = (TAG,)
SIGNS = (TAG, "<|eom_id|>")
_NEVER = ""
# Bare objects: with tools of one's own the models leave the tag out.
FRAME = Frame(TAG, between="; ", last=True)
call_parts = json_call('{"name": NAME, "parameters": ', "}")


class ToolParser:
    """A bare object is told from text by its first character and read once the answer is whole."""

    def __init__(self, tools: Sequence[Message] = ()) -> None:
        self._tagged = TaggedCalls({TAG: _NEVER, FUNCTION: END}, _read)
        self._bare: str | None = ""

    def feed(self, text: str) -> list[Event]:
        if self._bare is None:
            return self._tagged.feed(text)
        self._bare += text
        begun = self._bare.lstrip()
        if not begun or begun.startswith("{"):
            return []
        held, self._bare = self._bare, None
        return self._tagged.feed(held)

    def finish(self) -> list[Event]:
        if self._bare is None:
            return self._tagged.finish()
        calls = _objects(self._bare)
        return list(calls) if calls else [*self._tagged.feed(self._bare), *self._tagged.finish()]


def _read(body: str) -> list[ToolCallEvent]:
    calls = _objects(body)
    if calls:
        return calls
    name, bracket, arguments = body.partition(">")
    value = from_json(arguments)
    return [ToolCallEvent(name, to_json(value))] if bracket and name and isinstance(value, dict) else []


def _objects(text: str) -> list[ToolCallEvent]:
    """Objects one after another, semicolons between; none where something else is there."""
    decoder, calls, rest = json.JSONDecoder(), [], text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (json.JSONDecodeError, RecursionError):
            return []
        call = call_of(value)
        if call is None:
            return []
        calls.append(call)
        rest = rest[end:].lstrip("; \n\t")
    return calls
