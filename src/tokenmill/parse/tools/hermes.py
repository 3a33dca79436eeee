"""Hermes' tool calls, which Qwen2.5 and Qwen3 speak: `<tool_call>` + JSON {name, arguments} + `</tool_call>`."""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.parse.calls import TaggedCalls, calls_of
from tokenmill.types import Message

START, END = "<tool_call>", "</tool_call>"
TAGS = (START, END)
SIGNS = TAGS


class ToolParser(TaggedCalls):
    def __init__(self, tools: Sequence[Message] = ()) -> None:
        super().__init__({START: END}, calls_of)
