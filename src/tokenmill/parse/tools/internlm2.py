"""InternLM2's tool calls: `<|action_start|><|plugin|>` + JSON {name, parameters} + `<|action_end|>`.

`arguments` is taken for `parameters`. Code for `<|interpreter|>` stays text.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.parse.calls import TaggedCalls, calls_of
from tokenmill.parse.events import ToolCallEvent
from tokenmill.parse.forms import Frame, json_call
from tokenmill.types import Message

START, END, PLUGIN, INTERPRETER = "<|action_start|>", "<|action_end|>", "<|plugin|>", "<|interpreter|>"
TAGS = (START, END, PLUGIN, INTERPRETER)
SIGNS = TAGS
FRAME = Frame(START + PLUGIN, between="\n")
call_parts = json_call(f'{START}{PLUGIN}\n{{"name": NAME, "parameters": ', f"}}{END}")


class ToolParser(TaggedCalls):
    def __init__(self, tools: Sequence[Message] = ()) -> None:
        super().__init__({START: END}, _read)


def _read(body: str) -> list[ToolCallEvent]:
    stripped = body.strip()
    return calls_of(stripped[len(PLUGIN) :]) if stripped.startswith(PLUGIN) else []
