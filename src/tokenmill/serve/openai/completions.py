"""POST /v1/completions: prompts as strings or token ids, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenmill.errors import RequestError
from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.deadline import timeout_of
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.service import Job, Service, service_of
from tokenmill.serve.http.sse import EventStream, event
from tokenmill.serve.openai.collect import LEAST_LOGPROB, Collected, answer_ids, finite, usage_body
from tokenmill.serve.openai.convert import completion_job
from tokenmill.serve.openai.describe import body_of
from tokenmill.serve.openai.schema import CompletionRequest
from tokenmill.types import Chunk, Finish, TextLogprob

router = APIRouter(tags=["openai"])


@dataclass(frozen=True, slots=True)
class Form:
    """How the answer is to look. `n` choices a prompt."""

    n: int
    echo: bool
    logprobs: bool
    include_usage: bool
    ids: bool


@router.post("/v1/completions", summary="Continue a text", openapi_extra=body_of(CompletionRequest))
async def complete(request: Request) -> Response:
    service = service_of(request)
    body, unknown = await read_json(request, CompletionRequest)
    service.metrics.unknown_fields.inc(unknown)
    job = completion_job(body, service.engine, service.options, timeout_of(request, service.options))
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    form = Form(body.n or 1, bool(body.echo), body.logprobs is not None, include_usage, bool(body.return_token_ids))
    if body.stream:
        return EventStream(_events(service, job, form), service.options.limits.ping_s)
    answer = await unless_gone(request.receive, _answer(service, job, form))
    return Response(msgspec.json.encode(answer), media_type="application/json")


@dataclass(slots=True)
class Choice:
    """One choice on its way out: `offset` counts characters already given a place in `text`."""

    index: int
    echo_text: str
    collected: Collected = field(default_factory=Collected)
    offset: int = 0
    begun: bool = False


async def _answer(service: Service, job: Job, form: Form) -> dict[str, Any]:
    choices = [Choice(i, await _echo_text(service, job, form, i)) for i in range(len(job.requests))]
    async with aclosing(service.run(job)) as chunks:
        async for index, chunk in chunks:
            choices[index].collected.add(chunk)
    if any(choice.collected.finish is Finish.TIMEOUT for choice in choices):
        raise RequestError("the request's deadline passed", 504, code="timeout")
    return {
        "id": job.id,
        "object": "text_completion",
        "created": job.created,
        "model": job.model,
        "choices": [await _choice(service, choice, form) for choice in choices],
        "usage": _usage(choices, form),
    }


async def _choice(service: Service, choice: Choice, form: Form) -> dict[str, Any]:
    done = choice.collected
    logprobs = None
    if form.logprobs:
        first = await _prompt_logprobs(service, done.prompt_ids, done.prompt_logprobs) if form.echo else []
        logprobs = completion_logprobs([*first, *done.logprobs], 0)
    return {
        "index": choice.index,
        "text": choice.echo_text + "".join(done.text),
        "logprobs": logprobs,
        "finish_reason": done.finish_reason,
        **({"prompt_token_ids": list(done.prompt_ids), **answer_ids(done.token_ids)} if form.ids else {}),
    }


async def _events(service: Service, job: Job, form: Form) -> AsyncGenerator[bytes, None]:
    """One event a chunk; echo comes before a choice's first; the finish reason has an event of its own."""
    head: dict[str, Any] = {
        "id": job.id, "object": "text_completion", "created": job.created, "model": job.model
    }
    if form.include_usage:
        head["usage"] = None
    choices = [Choice(i, await _echo_text(service, job, form, i)) for i in range(len(job.requests))]
    async with aclosing(service.run(job)) as chunks:
        async for index, chunk in chunks:
            choice = choices[index]
            choice.collected.note_end(chunk)
            piece = await _piece(service, choice, chunk, form)
            if piece is not None:
                yield event({**head, "choices": [piece]})
            if chunk.finish is not None:
                last = {"index": index, "text": "", "finish_reason": choice.collected.finish_reason}
                yield event({**head, "choices": [last]})
    if form.include_usage:
        yield event({**head, "choices": [], "usage": _usage(choices, form)})


async def _piece(service: Service, choice: Choice, chunk: Chunk, form: Form) -> dict[str, Any] | None:
    """The part of an answer that `chunk` is, or None where it says nothing."""
    text, entries = chunk.text, list[TextLogprob | None](chunk.logprobs)
    if not choice.begun:
        choice.begun = True
        text = choice.echo_text + text
        if form.echo and form.logprobs:
            entries = [*await _prompt_logprobs(service, chunk.prompt_ids or (), chunk.prompt_logprobs), *entries]
    if not text and not entries and not (form.ids and chunk.token_ids):
        return None
    piece: dict[str, Any] = {"index": choice.index, "text": text, **(answer_ids(chunk.token_ids) if form.ids else {})}
    if form.logprobs:
        piece["logprobs"] = completion_logprobs(entries, choice.offset)
        choice.offset += sum(len(entry.token) for entry in entries if entry is not None)
    return piece


async def _echo_text(service: Service, job: Job, form: Form, index: int) -> str:
    if not form.echo:
        return ""
    prompt = job.requests[index].prompt
    if isinstance(prompt, str):
        return prompt
    return await service.engine.codec.decode(prompt, skip_special_tokens=False)  # type: ignore[arg-type]


async def _prompt_logprobs(
    service: Service, prompt_ids: tuple[int, ...], logprobs: tuple[TextLogprob | None, ...] | None
) -> list[TextLogprob | None]:
    """The prompt's entries; the first token has no probability, but a text, which is all that is put in its place."""
    if not logprobs or not prompt_ids:
        return []
    text = await service.engine.codec.decode(prompt_ids[:1], skip_special_tokens=False)
    return [TextLogprob(text, text.encode(), prompt_ids[0], float("nan")), *logprobs[1:]]


def completion_logprobs(entries: list[TextLogprob | None], offset: int) -> dict[str, Any]:
    """The shape of completions: parallel lists. A token without probability (the prompt's first) has null."""
    known = [entry for entry in entries if entry is not None]
    offsets = []
    for entry in known:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in known],
        "token_logprobs": [None if entry.logprob != entry.logprob else finite(entry.logprob) for entry in known],
        "top_logprobs": [_alternatives(entry) for entry in known],
        "text_offset": offsets,
    }


def _alternatives(entry: TextLogprob) -> dict[str, float] | None:
    """The drawn token among the best ones, as OpenAI has it.

    Tokens may share a text (a byte and a character, halves of characters). The best of them has the place: readers tell
    a greedy token by comparing its own probability with the best one here.
    """
    if entry.logprob != entry.logprob:
        return None
    best: dict[str, float] = {}
    for item in (entry, *entry.top):
        best[item.token] = max(finite(item.logprob), best.get(item.token, LEAST_LOGPROB))
    return best


def _usage(choices: list[Choice], form: Form) -> dict[str, Any]:
    answers = [choice.collected.usage for choice in choices]
    return usage_body(answers[:: form.n], answers)
