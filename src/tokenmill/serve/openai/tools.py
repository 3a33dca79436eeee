"""`tools` and `tool_choice`: which tools the model is shown, and whether it must call one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from tokenmill.serve.openai.refuse import refuse
from tokenmill.serve.openai.schema import ChatRequest
from tokenmill.types import Message

MAX_TOOL_BYTES = 64 * 1024
MAX_TOOL_DEPTH = 32
_CHOICES = (
    "tool_choice is auto, none, required, {type: function, function: {name}} or "
    "{type: allowed_tools, allowed_tools: {mode, tools}}"
)


@dataclass(frozen=True, slots=True)
class ToolsWish:
    """`choice` is auto or required; no tools: none are shown."""

    tools: tuple[Message, ...] = ()
    choice: str = "auto"


def tools_wish(body: ChatRequest) -> ToolsWish:
    """A named tool is shown alone and must be called. Raises RequestError on what is no choice."""
    choice = "auto" if body.tool_choice is None else body.tool_choice
    for tool in body.tools or ():
        _check_tool(tool)
    if isinstance(choice, dict):
        return _chosen(body, choice)
    if choice not in ("auto", "none", "required"):
        raise refuse(_CHOICES, "tool_choice")
    if choice == "none":
        return ToolsWish()
    if choice == "required" and not body.tools:
        raise refuse("tool_choice is required, but there are no tools; send some", "tools")
    return ToolsWish(tuple(body.tools or ()), choice)


def _chosen(body: ChatRequest, choice: dict[str, Any]) -> ToolsWish:
    if choice.get("type") == "function":
        return ToolsWish((_named(body, choice),), "required")
    # Chat has them one level down, the responses API beside the type.
    allowed = choice.get("allowed_tools", choice)
    mode, entries = (allowed.get("mode"), allowed.get("tools")) if isinstance(allowed, dict) else (None, None)
    if choice.get("type") != "allowed_tools" or mode not in ("auto", "required") or not isinstance(entries, list):
        raise refuse(_CHOICES, "tool_choice")
    return ToolsWish(tuple(_named(body, entry) for entry in entries), mode)


def _named(body: ChatRequest, entry: Any) -> Message:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not _is_name(name):
        raise refuse(_CHOICES, "tool_choice")
    found = next((tool for tool in body.tools or () if tool["function"]["name"] == name), None)
    if found is None:
        raise refuse(f"tool_choice names {name!r}, which is no tool given", "tool_choice")
    return found


def _check_tool(tool: dict[str, Any]) -> None:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict) or not _is_name(function.get("name")):
        raise refuse("a tool is {type: function, function: {name, description, parameters}}", "tools")
    _check_schema(function.get("parameters"))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256


def _check_schema(schema: Any) -> None:
    if schema is None:
        return
    if not isinstance(schema, dict):
        raise refuse("a function's parameters are a JSON schema object", "tools")
    if len(msgspec.json.encode(schema)) > MAX_TOOL_BYTES:
        raise refuse(f"a tool's schema is larger than {MAX_TOOL_BYTES // 1024} KiB", "tools")
    if _depth(schema) > MAX_TOOL_DEPTH:
        raise refuse(f"a tool's schema is nested deeper than {MAX_TOOL_DEPTH} levels", "tools")


def _depth(value: Any) -> int:
    """Nesting of a JSON value; the body reader has bounded it, so recursion is safe."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((_depth(child) for child in children if isinstance(child, dict | list)), default=0)
