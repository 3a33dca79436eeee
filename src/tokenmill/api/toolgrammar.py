"""`tool_choice` and strict tools as a grammar of the model's own dialect. Pure.

required, or a name: the answer is calls of the tools shown (after reasoning, where the model reasons), no more.
auto with a tool that says `strict`: words are free, but what begins as a call becomes one; arguments
of tools that do not say so are any JSON object. A response_format gives way to required calls, strict ones to it.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from tokenmill import find
from tokenmill.api.parsers import REASONING, TOOLS, ParserNames
from tokenmill.errors import RequestError
from tokenmill.grammar.calls import call_text
from tokenmill.parse.reasoning.think_tags import CLOSE
from tokenmill.types import GrammarSpec, Message, TextRequest

TOOL_CALLS = "tool_calls"


def constrained(request: TextRequest, tools: tuple[Message, ...], names: ParserNames) -> TextRequest:
    """The request with the grammar that its tools ask for; itself where they ask for none."""
    free = request.tool_choice == "auto"
    strict = any(_function(tool).get("strict") for tool in tools)
    if request.tool_choice == "required" and not tools:
        raise RequestError("tool_choice is required, but there are no tools; send some", param="tools")
    if not tools or names.tools is None or (free and (not strict or request.grammar is not None)):
        return request
    dialect = find.load(TOOLS, names.tools)
    value = {
        "calls": [dialect.call_parts(_function(tool)["name"], _schema(_function(tool), free)) for tool in tools],
        **asdict(dialect.FRAME),
        "parallel": request.parallel_tool_calls,
        "free": free,
        "think": "" if free else _thinks(request, names),
    }
    return replace(request, grammar=GrammarSpec(TOOL_CALLS, call_text(value)))


def for_tools(error: RequestError) -> RequestError:
    """A refused grammar of ours, told as what the user sent."""
    return RequestError(f"the tools cannot be enforced: {error}", error.status, param="tools", code=error.code)


def _function(tool: Message) -> dict[str, Any]:
    function: dict[str, Any] = tool.get("function", tool)
    return function


def _schema(function: dict[str, Any], free: bool) -> dict[str, Any]:
    """The schema of the arguments. Where it lists properties, the model may write no others unless it says so."""
    if free and not function.get("strict"):
        return {"type": "object"}
    schema = {"type": "object", **(function.get("parameters") or {"properties": {}})}
    return {"additionalProperties": False, **schema} if "properties" in schema else schema


def _thinks(request: TextRequest, names: ParserNames) -> str:
    if names.reasoning is None:
        return ""
    module = find.load(REASONING, names.reasoning)
    # The grammar knows reasoning between think tags only.
    if CLOSE not in module.TAGS:
        return ""
    return "inside" if module.starts_inside(request.template_options) else "may"
