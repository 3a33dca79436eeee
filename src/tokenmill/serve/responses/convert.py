"""A responses request as a chat request of ours: one set of bounds, one way into the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from tokenmill.errors import RequestError
from tokenmill.serve.http.errors import from_validation
from tokenmill.serve.openai.schema import ChatRequest
from tokenmill.serve.responses.schema import STATEFUL, Item, ResponsesRequest

_TOOL_FIELDS = ("name", "description", "parameters", "strict")
_TEXT_PARTS = ("input_text", "output_text", "text")


def chat_request(body: ResponsesRequest) -> ChatRequest:
    """The same wish in the shape of chat completions. Raises RequestError on what needs a memory we do not have."""
    for name in STATEFUL:
        if getattr(body, name) not in (None, False):
            raise RequestError(
                f"{name} is not supported: the server keeps no responses; send the whole conversation as input",
                400, param=name, code="invalid_prompt",
            )
    fields = {
        "model": body.model,
        "messages": list(_messages(body)),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "tools": [_tool(tool) for tool in body.tools or ()] or None,
        "tool_choice": body.tool_choice if body.tools else None,
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": body.text.format if body.text else None,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
    }
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False)) from None


@contextmanager
def told_as_input() -> Iterator[None]:
    """What is wrong with the messages is wrong with what the client knows as `input`."""
    try:
        yield
    except RequestError as error:
        if error.param is None or error.param.split(".")[0] != "messages":
            raise
        param = error.param.replace("messages", "input", 1)
        raise RequestError(str(error), error.status, param=param, code=error.code) from error


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Theirs lie flat; other kinds than functions run on somebody else's servers."""
    if tool.get("type") != "function":
        raise RequestError("only tools of type function are supported", 400, param="tools")
    return {"type": "function", "function": {k: tool[k] for k in _TOOL_FIELDS if k in tool}}


def _messages(body: ResponsesRequest) -> Iterator[dict[str, Any]]:
    if body.instructions:
        yield {"role": "system", "content": body.instructions}
    if isinstance(body.input, str):
        yield {"role": "user", "content": body.input}
        return
    calls: list[dict[str, Any]] = []
    for item in body.input:
        if item.type == "function_call":
            calls.append(_call(item))
            continue
        # Calls that follow each other were made in one turn.
        if calls:
            yield {"role": "assistant", "tool_calls": calls}
            calls = []
        if item.type != "reasoning":
            yield _message(item)
    if calls:
        yield {"role": "assistant", "tool_calls": calls}


def _call(item: Item) -> dict[str, Any]:
    if not item.call_id or not item.name or item.arguments is None:
        raise RequestError("a function_call item needs call_id, name and arguments", 400, param="input")
    return {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}


def _message(item: Item) -> dict[str, Any]:
    if item.type == "function_call_output":
        if not item.call_id or item.output is None:
            raise RequestError("a function_call_output item needs call_id and output", 400, param="input")
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
    if item.type != "message" or item.role is None or item.content is None:
        raise RequestError(
            "input items are messages {role, content}, function_call, function_call_output and reasoning",
            400, param="input", code="invalid_prompt",
        )
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": _content(item.content)}


def _content(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Text, or parts where some are images."""
    if isinstance(content, str) or all(part.get("type") != "input_image" for part in content):
        return _text(content)
    return [
        _image(part) if part.get("type") == "input_image" else {"type": "text", "text": _text([part])}
        for part in content
    ]


def _image(part: dict[str, Any]) -> dict[str, Any]:
    """Theirs names the address beside the type; files kept for a client are a memory we do not have."""
    url, detail = part.get("image_url"), part.get("detail")
    if not isinstance(url, str) or part.get("file_id") is not None:
        raise RequestError(
            "an input_image needs an image_url (https: or data:); a file_id means nothing here, as no files are kept",
            400, param="input",
        )
    return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail is not None else {})}


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            raise RequestError("content parts are of type input_text, output_text or input_image", 400, param="input")
    return "\n".join(part["text"] for part in content)
