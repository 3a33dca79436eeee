"""Tools as Qwen2.5 writes them: T1, a line of JSON per tool, T2, at the end of the system text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenmill.tokenize.messages import call_of
from tokenmill.tokenize.template import ToolLowering
from tokenmill.types import Message

_BEFORE = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def lower_tools(system_text: str) -> ToolLowering:
    """Writes tools behind the system text (`system_text` where the conversation brings none)."""

    def lower(messages: list[Message], tools: Sequence[Message]) -> list[Message]:
        lowered = _merge_results([_lower(message) for message in messages])
        if not tools:
            return lowered
        listing = _BEFORE + "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools) + _AFTER
        own = lowered[0]["role"] == "system"
        text = lowered[0]["content"] if own else system_text
        return [{"role": "system", "content": text + listing}, *lowered[int(own) :]]

    return lower


def _lower(message: Message) -> Message:
    calls = message.get("tool_calls")
    if message["role"] == "tool":
        return {"role": "tool", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if message["role"] == "assistant" and calls:
        text = "\n".join(([message["content"]] if message["content"] else []) + [_call(call) for call in calls])
        return {"role": "assistant", "content": text}
    return {"role": message["role"], "content": message["content"]}


def _call(tool_call: Message) -> str:
    name, arguments = call_of(tool_call)
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def _merge_results(messages: list[Message]) -> list[Message]:
    """Results that follow each other share one user turn."""
    merged: list[Message] = []
    shared = False
    for message in messages:
        result = message["role"] == "tool"
        if result and shared:
            merged[-1] = {"role": "user", "content": merged[-1]["content"] + "\n" + message["content"]}
        else:
            merged.append({"role": "user", "content": message["content"]} if result else message)
        shared = result
    return merged
