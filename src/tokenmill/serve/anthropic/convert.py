"""Anthropic's messages as a chat request of ours, so that one set of bounds and one way into the engine serve both.

A last message of the assistant's is continued (prefill). Tool results become tool messages, in front of what the user
says beside them; thinking of earlier turns goes to the template as reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.requests import Request

from tokenmill.errors import RequestError
from tokenmill.serve.anthropic.schema import Block, CountRequest, InputMessage, MessagesRequest, Tool
from tokenmill.serve.http.errors import from_validation
from tokenmill.serve.openai.schema import ChatRequest

VERSION_HEADER = "anthropic-version"


def check_version(request: Request) -> None:
    if not request.headers.get(VERSION_HEADER):
        raise RequestError(f"the header {VERSION_HEADER} is missing; send for example 2023-06-01", 400)


def chat_request(body: CountRequest) -> ChatRequest:
    """The same wish in the shape of chat completions."""
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": [*_system(body), *(plain for message in body.messages for plain in _plain(message))],
        "tools": [_tool(tool) for tool in body.tools or ()] or None,
        "tool_choice": _tool_choice(body) if body.tools else None,
        "parallel_tool_calls": not (body.tool_choice and body.tool_choice.disable_parallel_tool_use),
    }
    if body.thinking is not None and body.thinking.type != "adaptive":
        fields["enable_thinking"] = body.thinking.type == "enabled"
        if body.thinking.type == "enabled" and body.thinking.budget_tokens is not None:
            # Clients send a budget to every model: one that does not reason has nothing to keep it for.
            fields["chat_template_kwargs"] = {"thinking_budget": body.thinking.budget_tokens}
    if isinstance(body, MessagesRequest):
        fields |= _generation(body)
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False)) from None


def _generation(body: MessagesRequest) -> dict[str, Any]:
    return {
        "max_tokens": body.max_tokens, "stop": body.stop_sequences, "stream": body.stream,
        "temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k,
    }  # fmt: skip


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function | ({"strict": True} if tool.strict else {})}


def _tool_choice(body: CountRequest) -> Any:
    choice = body.tool_choice
    if choice is None or choice.type in ("auto", "none"):
        return None if choice is None else choice.type
    if choice.type == "any":
        return "required"
    return {"type": "function", "function": {"name": choice.name}}


def _system(body: CountRequest) -> list[dict[str, Any]]:
    if not body.system:
        return []
    return [{"role": "system", "content": body.system if isinstance(body.system, str) else _texts(body.system)}]


def _plain(message: InputMessage) -> Iterator[dict[str, Any]]:
    """One message of theirs is one of ours, and one more for each tool result."""
    if isinstance(message.content, str):
        if not message.content:
            raise RequestError(f"a {message.role} message is empty", 400, param="messages")
        yield {"role": message.role, "content": message.content}
    elif message.role == "assistant":
        yield _assistant(message.content)
    else:
        results = [block for block in message.content if block.type == "tool_result"]
        yield from (_tool_result(block) for block in results)
        rest = [block for block in message.content if block.type != "tool_result"]
        if rest or not results:
            yield {"role": message.role, "content": _content(rest)}


def _assistant(blocks: Sequence[Block]) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant"}
    calls = [_call(block) for block in blocks if block.type == "tool_use"]
    thoughts = [block.thinking or "" for block in blocks if block.type == "thinking"]
    rest = [block for block in blocks if block.type not in ("tool_use", "thinking", "redacted_thinking")]
    if calls:
        said["tool_calls"] = calls
    if thoughts:
        said["reasoning_content"] = "".join(thoughts)
    if rest or not calls:
        said["content"] = _texts(rest)
    return said


def _call(block: Block) -> dict[str, Any]:
    if not block.id or not block.name or block.input is None:
        raise RequestError("a tool_use block needs id, name and input", 400, param="messages")
    arguments = msgspec.json.encode(block.input).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _tool_result(block: Block) -> dict[str, Any]:
    if not block.tool_use_id:
        raise RequestError("a tool_result block needs tool_use_id", 400, param="messages")
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result_text(block.content)}


def _result_text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError("a tool_result's content is a text or a list of text blocks", 400, param="messages")
    return "\n".join(map(str, texts))


def _content(blocks: Sequence[Block]) -> str | list[dict[str, Any]]:
    """Text, or parts where some blocks are images."""
    if all(block.type != "image" for block in blocks):
        return _texts(blocks)
    return [_image(block) if block.type == "image" else {"type": "text", "text": _texts([block])} for block in blocks]


def _image(block: Block) -> dict[str, Any]:
    source = block.source or {}
    url = source.get("url") if source.get("type") == "url" else None
    if source.get("type") == "base64":
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
    if not isinstance(url, str):
        raise RequestError("an image block needs a source of type base64 or url", 400, param="messages")
    return {"type": "image_url", "image_url": {"url": url}}


def _texts(blocks: Sequence[Block]) -> str:
    other = next((block.type for block in blocks if block.type != "text" or block.text is None), None)
    if other is not None:
        raise RequestError(
            "this model reads text, tool_use, tool_result and thinking blocks only", 400, param="messages"
        )
    if not blocks:
        raise RequestError("a message has no content blocks", 400, param="messages")
    return "\n".join(block.text or "" for block in blocks)
