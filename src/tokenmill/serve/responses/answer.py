"""A response object and its items."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from tokenmill.serve.http.service import Job
from tokenmill.serve.openai.collect import Collected
from tokenmill.serve.responses.schema import ResponsesRequest
from tokenmill.types import Finish, Usage


@dataclass(frozen=True, slots=True)
class Asked:
    """What of the request stands in its answer."""

    job: Job
    body: ResponsesRequest


def response(asked: Asked, status: str, output: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
    """The object as it is now; `usage` is known at the end."""
    job, body = asked.job, asked.body
    text = "".join(part["text"] for item in output if item["type"] == "message" for part in item["content"])
    return {
        "id": job.id,
        "object": "response",
        "created_at": job.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": job.model,
        "output": output,
        "output_text": text,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": job.requests[0].sampling.temperature,
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": job.requests[0].sampling.top_p,
        "truncation": "disabled",
        "usage": None if usage is None else _usage(usage),
        "user": body.user,
        "metadata": body.metadata or {},
    }


def whole(asked: Asked, done: Collected) -> dict[str, Any]:
    """The answer at its end."""
    output: list[dict[str, Any]] = []
    if done.reasoning:
        output.append(reasoning_item(new_id("rs"), "".join(done.reasoning)))
    if done.text or not done.calls:
        output.append(message_item(new_id("msg"), "".join(done.text), "completed"))
    for place in sorted(done.calls):
        call = done.calls[place]
        output.append(call_item(new_id("fc"), call["id"], call["function"]["name"], call["function"]["arguments"]))
    return response(asked, status_of(done.finish), output, done.usage)


def status_of(finish: Finish | None) -> str:
    """A response that was cut, by its length or by an abort, is incomplete."""
    return "completed" if finish is Finish.STOP else "incomplete"


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def reasoning_item(item_id: str, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": "completed"}


def message_item(item_id: str, text: str | None, status: str) -> dict[str, Any]:
    """`text` None: nothing is in it yet."""
    content = [] if text is None else [text_part(text)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(item_id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    return {"id": item_id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments,
            "status": status}  # fmt: skip


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
