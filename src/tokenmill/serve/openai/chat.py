"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.deadline import timeout_of
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.service import Job, Service, service_of
from tokenmill.serve.http.sse import EventStream, event
from tokenmill.serve.openai.collect import Collected, answer_ids, chat_logprobs, collect, logprob_pairs, usage_body
from tokenmill.serve.openai.convert import chat_job
from tokenmill.serve.openai.describe import body_of
from tokenmill.serve.openai.schema import ChatRequest
from tokenmill.types import Chunk

router = APIRouter(tags=["openai"])


@dataclass(frozen=True, slots=True)
class Form:
    """How the answer is to look. `logprobs` in OpenAI's shape, `pairs`: [log-probability, id] of each token."""

    include_usage: bool
    ids: bool
    logprobs: bool
    pairs: bool


@router.post("/v1/chat/completions", summary="Answer a conversation", openapi_extra=body_of(ChatRequest))
async def chat_completions(request: Request) -> Response:
    service = service_of(request)
    body, unknown = await read_json(request, ChatRequest)
    service.metrics.unknown_fields.inc(unknown)
    job = chat_job(body, service.engine, service.options, timeout_of(request, service.options))
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    form = Form(include_usage, bool(body.return_token_ids), bool(body.logprobs), bool(body.return_logprob))
    if body.stream:
        return EventStream(_events(service, job, form), service.options.limits.ping_s)
    answer = await unless_gone(request.receive, _answer(service, job, form))
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _answer(service: Service, job: Job, form: Form) -> dict[str, Any]:
    choices = await collect(service, job)
    prompt = {"prompt_token_ids": list(choices[0].prompt_ids)} if form.ids else {}
    return {
        "id": job.id,
        "object": "chat.completion",
        "created": job.created,
        "model": job.model,
        "service_tier": None,
        "choices": [_choice(index, choice, form) for index, choice in enumerate(choices)],
        "usage": usage_body([choices[0].usage], [choice.usage for choice in choices]),
        **prompt,
    }


def _choice(index: int, choice: Collected, form: Form) -> dict[str, Any]:
    text = "".join(choice.text)
    calls = [choice.calls[place] for place in sorted(choice.calls)]
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": text if text or not calls else None,
            "reasoning_content": "".join(choice.reasoning) or None,
            "tool_calls": calls or None,
        },
        "logprobs": chat_logprobs(choice.logprobs) if form.logprobs else None,
        "finish_reason": choice.finish_reason,
        **(answer_ids(choice.token_ids) if form.ids else {}),
        **(logprob_pairs(choice.logprobs) if form.pairs else {}),
    }


async def _events(service: Service, job: Job, form: Form) -> AsyncGenerator[bytes, None]:
    """One event a chunk, then one per choice with its finish reason, then the usage where it was asked for."""
    head: dict[str, Any] = {
        "id": job.id, "object": "chat.completion.chunk", "created": job.created, "model": job.model
    }
    if form.include_usage:
        head["usage"] = None
    choices = [Collected() for _ in job.requests]
    async with aclosing(service.run(job)) as chunks:
        async for index, chunk in chunks:
            choices[index].note_end(chunk)
            piece = _piece(index, chunk, form)
            if piece is not None:
                yield event({**head, "choices": [piece]})
            if chunk.finish is not None:
                yield event({**head, "choices": [_last(index, choices[index])]})
    if form.include_usage:
        usage = usage_body([choices[0].usage], [choice.usage for choice in choices])
        yield event({**head, "choices": [], "usage": usage})


def _piece(index: int, chunk: Chunk, form: Form) -> dict[str, Any] | None:
    """A choice's part of an event; None: nothing to say."""
    said = chunk.text or chunk.reasoning or chunk.tool_calls or chunk.logprobs
    if not said and not (form.ids and (chunk.token_ids or chunk.prompt_ids)):
        return None
    piece: dict[str, Any] = {"index": index, "delta": _delta(chunk)}
    if chunk.logprobs and form.logprobs:
        piece["logprobs"] = chat_logprobs(chunk.logprobs)
    if chunk.logprobs and form.pairs:
        piece |= logprob_pairs(chunk.logprobs)
    if form.ids:
        piece |= answer_ids(chunk.token_ids)
        if chunk.prompt_ids is not None:
            piece["prompt_token_ids"] = list(chunk.prompt_ids)
    return piece


def _delta(chunk: Chunk) -> dict[str, Any]:
    """Every delta carries the role and a string as content, as LMDeploy's clients expect."""
    delta: dict[str, Any] = {"role": "assistant", "content": chunk.text}
    if chunk.reasoning:
        delta["reasoning_content"] = chunk.reasoning
    if chunk.tool_calls:
        delta["tool_calls"] = [_call(call) for call in chunk.tool_calls]
    return delta


def _call(delta: Any) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": delta.arguments}
    if delta.name:
        function["name"] = delta.name
    call: dict[str, Any] = {"index": delta.index, "function": function}
    if delta.id:
        call |= {"id": delta.id, "type": "function"}
    return call


def _last(index: int, choice: Collected) -> dict[str, Any]:
    return {
        "index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": choice.finish_reason
    }
