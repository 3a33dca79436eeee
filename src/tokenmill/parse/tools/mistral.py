"""Mistral's tool calls: `[TOOL_CALLS]` + a JSON list of {name, arguments}; since v11 `[TOOL_CALLS]NAME[ARGS]{...}`."""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.parse.calls import TaggedCalls, calls_of, from_json, to_json
from tokenmill.parse.events import ToolCallEvent
from tokenmill.parse.forms import Frame, json_call
from tokenmill.types import Message

START, ARGS = "[TOOL_CALLS]", "[ARGS]"
TAGS = (START, ARGS)
SIGNS = (START,)
_NEVER = ""
FRAME = Frame(START, f"{START}[", ", ", "]", last=True)
call_parts = json_call('{"name": NAME, "arguments": ', "}")


class ToolParser(TaggedCalls):
    def __init__(self, tools: Sequence[Message] = ()) -> None:
        super().__init__({START: _NEVER}, _read)


def _read(body: str) -> list[ToolCallEvent]:
    if ARGS not in body:
        return calls_of(body)
    calls = []
    for part in body.split(START):
        name, _, arguments = part.partition(ARGS)
        value = from_json(arguments)
        if not name.strip() or not isinstance(value, dict):
            return []
        calls.append(ToolCallEvent(name.strip(), to_json(value)))
    return calls
