"""Hermes' tool calls, which Qwen2.5 and Qwen3 speak: `<tool_call>` + JSON {name, arguments} + `</tool_call>`."""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.parse.calls import TaggedCalls, calls_of
from tokenmill.parse.forms import Frame, json_call
from tokenmill.types import Message

START, END = "<tool_call>", "</tool_call>"
TAGS = (START, END)
SIGNS = TAGS
FRAME = Frame(START, between="\n")
call_parts = json_call(f'{START}\n{{"name": NAME, "arguments": ', f"}}\n{END}")


class ToolParser(TaggedCalls):
    def __init__(self, tools: Sequence[Message] = ()) -> None:
        super().__init__({START: END}, calls_of)
