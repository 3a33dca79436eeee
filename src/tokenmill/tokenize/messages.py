"""Chat messages as templates want them: checked, text parts joined, tool arguments as objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenmill.errors import RequestError
from tokenmill.types import Message


def plain_messages(messages: Sequence[Message]) -> list[Message]:
    """Copies whose content is a string. Raises RequestError on no message, no role, or a part that is no text."""
    if not messages:
        raise RequestError("messages is empty; send at least one message", param="messages")
    return [_plain(index, message) for index, message in enumerate(messages)]


def tool_functions(tools: Iterable[Message]) -> list[Any]:
    """The inner function objects (name, description, parameters) of OpenAI tools."""
    return [tool.get("function", tool) for tool in tools]


def call_of(tool_call: Message) -> tuple[str, Any]:
    """Name and arguments (an object where they are JSON) of a tool call. Raises RequestError where it is none."""
    function = tool_call.get("function", tool_call) if isinstance(tool_call, dict) else None
    if not isinstance(function, dict):
        raise RequestError("a tool call of a message is {type, function: {name, arguments}}", param="messages")
    return str(function.get("name", "")), _object(function.get("arguments", {}))


def _plain(index: int, message: Message) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where} has no role; it must be an object with role and content", param=where)
    plain = {**message, "content": _text(where, message.get("content"))}
    calls = message.get("tool_calls")
    if calls:
        plain["tool_calls"] = [_with_object(call) for call in calls]
    return plain


def _text(where: str, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise RequestError(f"{where}.content is a {type(content).__name__}; it must be text or a list of parts",
                           param=where)
    return "\n".join(_part(where, part) for part in content)


def _part(where: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise RequestError(f"{where}.content has a part of type {kind!r}; this model takes text only", param=where)


def _with_object(call: Message) -> Message:
    name, arguments = call_of(call)
    return {**call, "type": call.get("type", "function"), "function": {"name": name, "arguments": arguments}}


def _object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        # No JSON, a number of too many digits, or nested too deep: the template shows the text.
        return arguments
