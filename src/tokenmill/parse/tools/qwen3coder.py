"""Qwen3-Coder: `<tool_call><function=NAME><parameter=K>V</parameter>...</function></tool_call>`.

A value is text where the tool's schema says so, JSON otherwise; the newlines that set it off are not part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenmill.parse.calls import TaggedCalls, parameter_types, to_json, typed
from tokenmill.parse.events import ToolCallEvent
from tokenmill.parse.forms import Frame, parameter_calls
from tokenmill.types import Message

START, END = "<tool_call>", "</tool_call>"
TAGS = (START, END)
# The tokenizer's tags are Hermes' too: only `--tool-call-parser` can tell.
SIGNS: tuple[str, ...] = ()
_FUNCTION = re.compile(r"\s*<function=([^<>\s]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^<>\s]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)
FRAME = Frame(START, between="\n")
# The newline before a closing tag is left to the value, of which it is no part.
call_parts = parameter_calls(
    f"{START}\n<function=NAME>\n", f"</function>\n{END}", lambda key, is_text: f"<parameter={key}>\n", "</parameter>\n"
)


class ToolParser(TaggedCalls):
    def __init__(self, tools: Sequence[Message] = ()) -> None:
        super().__init__({START: END}, lambda body: _read(body, tools))


def _read(body: str, tools: Sequence[Message]) -> list[ToolCallEvent]:
    function = _FUNCTION.fullmatch(body)
    if function is None:
        return []
    kinds, arguments, at = parameter_types(tools, function[1]), {}, 0
    while function[2][at:].strip():
        pair = _PARAMETER.match(function[2], at)
        if pair is None:
            return []
        arguments[pair[1]] = typed(pair[2], kinds.get(pair[1]))
        at = pair.end()
    return [ToolCallEvent(function[1], to_json(arguments))]
