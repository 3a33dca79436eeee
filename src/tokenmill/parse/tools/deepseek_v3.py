"""DeepSeek-V3 and R1: a block of calls, each `function<｜tool▁sep｜>NAME` and its JSON in a code fence.

V3.1 leaves out the word and the fence: `NAME<｜tool▁sep｜>{...}`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenmill.parse.calls import TaggedCalls, from_json, to_json
from tokenmill.parse.events import ToolCallEvent
from tokenmill.parse.forms import Frame, Part
from tokenmill.types import Message

START, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
TAGS = (START, END, CALL, CALL_END, SEP)
SIGNS = TAGS
_FENCED = re.compile(r"(\S+)\s*```json\s*(.*?)\s*```\s*", re.DOTALL)
FRAME = Frame(START, START, "\n", END)


def call_parts(name: str, schema: dict[str, Any]) -> list[Part]:
    return [f"{CALL}function{SEP}{name}\n```json\n", {"schema": schema}, f"\n```{CALL_END}"]


class ToolParser(TaggedCalls):
    def __init__(self, tools: Sequence[Message] = ()) -> None:
        super().__init__({START: END}, _read)


def _read(body: str) -> list[ToolCallEvent]:
    parts = [part.replace(CALL_END, "") for part in body.split(CALL) if part.strip()]
    calls = [_call(part) for part in parts]
    return [call for call in calls if call is not None] if None not in calls else []


def _call(text: str) -> ToolCallEvent | None:
    kind, sep, rest = text.partition(SEP)
    fenced = _FENCED.fullmatch(rest.strip())
    name, arguments = (fenced[1], fenced[2]) if fenced else (kind.strip(), rest)
    value = from_json(arguments)
    return ToolCallEvent(name, to_json(value)) if sep and name and isinstance(value, dict) else None
