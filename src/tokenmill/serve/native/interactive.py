"""POST /v1/chat/interactive: the server keeps a conversation under its session_id while `interactive_mode` is on.

A stream is JSON objects one per line, without `data:` and without an end mark, as the first generation's clients read
it. Conversations are kept as messages, the SESSIONS used last; the engine's prefix cache saves computing them again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenmill.errors import RequestError
from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.deadline import timeout_of
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.errors import error_body
from tokenmill.serve.http.service import Job, Service, service_of
from tokenmill.serve.http.sse import EventStream, Framing
from tokenmill.serve.native.convert import completion_of, one_job
from tokenmill.serve.native.schema import InteractiveRequest
from tokenmill.serve.openai.collect import Collected, collect
from tokenmill.serve.openai.describe import body_of
from tokenmill.types import Finish, Message

router = APIRouter(tags=["native"])
# LMDeploy's defaults of this endpoint.
TEMPERATURE, TOP_P, TOP_K = 0.8, 0.8, 40


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


LINES = Framing(failure=lambda e: _line(error_body(e.status, str(e), e.param, e.code)), end=b"")


@router.post("/v1/chat/interactive", summary="Talk within a session", openapi_extra=body_of(InteractiveRequest))
async def interactive(request: Request) -> Response:
    service = service_of(request)
    return await answer_interactive(request, service, *await read_json(request, InteractiveRequest))


async def answer_interactive(
    request: Request, service: Service, body: InteractiveRequest, unknown: int
) -> Response:
    service.metrics.unknown_fields.inc(unknown)
    session = None if body.session_id in (None, -1) else body.session_id
    if body.cancel:
        return _cancel(service, session)
    if body.request_output_len == 0 and not body.interactive_mode:
        service.conversations.forget(session)
        return _json(_answer(Turn((), 0), "", Collected(finish=Finish.STOP)))
    turn = _turn(service, session, body)
    job = _job(request, service, body, turn)
    if body.stream:
        return EventStream(_lines(service, job, turn, body), None, LINES)
    [done] = await unless_gone(request.receive, collect(service, job))
    _keep(service, job, turn, body, done)
    return _json(_answer(turn, "".join(done.text), done))


@dataclass(frozen=True, slots=True)
class Turn:
    """The conversation up to and with this question; `history_tokens` came before it."""

    messages: tuple[Message, ...]
    history_tokens: int


def _turn(service: Service, session: int | None, body: InteractiveRequest) -> Turn:
    known = service.conversations.get(session)
    if not isinstance(body.prompt, str):
        said: tuple[Message, ...] = tuple({"role": m.role, "content": _text(m.content)} for m in body.prompt)
    elif body.prompt:
        said = ({"role": "user", "content": body.prompt},)
    else:
        raise RequestError("the prompt is empty", 400, param="prompt")
    return Turn((*known.messages, *said), known.tokens)


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if any(part.type != "text" for part in content):
        raise RequestError("only text content parts are supported by this model", 400, param="prompt")
    return "\n".join(part.text or "" for part in content)


def _job(request: Request, service: Service, body: InteractiveRequest, turn: Turn) -> Job:
    engine, options = service.engine, service.options
    fields = {
        "prompt": "-", "stop": body.stop, "n": 1,
        "max_tokens": body.max_tokens if body.request_output_len is None else body.request_output_len,
        "temperature": TEMPERATURE if body.temperature is None else body.temperature,
        "top_p": TOP_P if body.top_p is None else body.top_p,
        "top_k": TOP_K if body.top_k is None else body.top_k,
    }  # fmt: skip
    job, wish = one_job(completion_of(body, engine, fields), engine, options, timeout_of(request, options))
    return replace(job, requests=(replace(wish, prompt=turn.messages, chat=True),))


async def _lines(service: Service, job: Job, turn: Turn, body: InteractiveRequest) -> AsyncGenerator[bytes, None]:
    done = Collected()
    async with aclosing(service.run(job)) as chunks:
        async for _, chunk in chunks:
            done.add(chunk)
            if chunk.text or chunk.finish is not None:
                yield _line(_answer(turn, chunk.text, done))
    _keep(service, job, turn, body, done)


def _keep(service: Service, job: Job, turn: Turn, body: InteractiveRequest, done: Collected) -> None:
    """Only after a whole answer: a question that failed can be asked again."""
    if not body.interactive_mode:
        service.conversations.forget(job.session)
        return
    answer: Message = {"role": "assistant", "content": "".join(done.text)}
    tokens = done.usage.prompt_tokens + done.usage.completion_tokens
    service.conversations.keep(job.session, (*turn.messages, answer), tokens)


def _answer(turn: Turn, text: str, done: Collected) -> dict[str, Any]:
    """`input_tokens` are those of this question; earlier turns are `history_tokens`."""
    return {
        "text": text,
        "tokens": done.usage.completion_tokens,
        "input_tokens": max(done.usage.prompt_tokens - turn.history_tokens, 0),
        "history_tokens": turn.history_tokens,
        "finish_reason": None if done.finish is None else done.finish.value,
    }


def _cancel(service: Service, session: int | None) -> Response:
    if session is None:
        raise RequestError("cancel needs a session_id", 400, param="session_id")
    service.abort_session(session)
    return _json(_answer(Turn((), 0), "", Collected(finish=Finish.STOP)))


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
