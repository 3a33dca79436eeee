"""GLM-4.5 and later: `<tool_call>NAME<arg_key>k</arg_key><arg_value>v</arg_value>...</tool_call>`.

A value is text where the tool's schema says so, JSON otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenmill.parse.calls import TaggedCalls, parameter_types, to_json, typed
from tokenmill.parse.events import ToolCallEvent
from tokenmill.parse.forms import Frame, parameter_calls
from tokenmill.types import Message

START, END = "<tool_call>", "</tool_call>"
TAGS = (START, END, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
SIGNS = TAGS
_PAIR = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)
FRAME = Frame(START, between="\n")
call_parts = parameter_calls(
    f"{START}NAME\n", END, lambda key, is_text: f"<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n"
)


class ToolParser(TaggedCalls):
    def __init__(self, tools: Sequence[Message] = ()) -> None:
        super().__init__({START: END}, lambda body: _read(body, tools))


def _read(body: str, tools: Sequence[Message]) -> list[ToolCallEvent]:
    at = body.find("<arg_key>")
    name = (body if at < 0 else body[:at]).strip()
    if not name or not re.fullmatch(r"[\w.-]+", name):
        return []
    kinds, arguments, at = parameter_types(tools, name), {}, len(body) if at < 0 else at
    while at < len(body):
        pair = _PAIR.match(body, at)
        if pair is None:
            return []
        key = pair[1].strip()
        arguments[key] = typed(pair[2], kinds.get(key))
        at = pair.end()
    return [ToolCallEvent(name, to_json(arguments))]
