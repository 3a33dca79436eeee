"""POST /generate: LMDeploy's since 0.10, and, where the body is of the first generation, /v1/chat/interactive."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenmill.errors import RequestError
from tokenmill.serve.http.body import read_object, validated
from tokenmill.serve.http.deadline import timeout_of
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.service import Job, Service, service_of
from tokenmill.serve.http.sse import EventStream, event
from tokenmill.serve.native.convert import completion_of, one_job
from tokenmill.serve.native.interactive import answer_interactive
from tokenmill.serve.native.schema import GenerateRequest, InteractiveRequest
from tokenmill.serve.openai.collect import Collected, collect, logprob_pairs
from tokenmill.serve.openai.describe import body_of
from tokenmill.types import Finish, TextLogprob, Usage

router = APIRouter(tags=["native"])
FIRST_GENERATION = frozenset({"request_output_len", "interactive_mode", "cancel"})


@router.post("/generate", summary="Continue a text or ids", openapi_extra=body_of(GenerateRequest))
async def generate(request: Request) -> Response:
    service = service_of(request)
    value = await read_object(request)
    if FIRST_GENERATION & value.keys():
        return await answer_interactive(request, service, *validated(value, InteractiveRequest))
    body, unknown = validated(value, GenerateRequest)
    service.metrics.unknown_fields.inc(unknown)
    job = _job(request, service, body)
    if body.stream:
        return EventStream(_events(service, job), service.options.limits.ping_s)
    [done] = await unless_gone(request.receive, collect(service, job))
    answer = _answer("".join(done.text), done.token_ids, done, done.logprobs if body.return_logprob else None)
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _job(request: Request, service: Service, body: GenerateRequest) -> Job:
    if (not body.prompt) == (not body.input_ids):
        raise RequestError("send exactly one of prompt and input_ids, and not empty", 400, param="prompt")
    fields = {"prompt": body.prompt or body.input_ids, "stop": body.stop, "n": 1,
              "logprobs": 0 if body.return_logprob else None}  # fmt: skip
    engine, options = service.engine, service.options
    return one_job(completion_of(body, engine, fields), engine, options, timeout_of(request, options))[0]


def _answer(
    text: str, ids: list[int], done: Collected, logprobs: list[TextLogprob] | None, ended: bool = True
) -> dict[str, Any]:
    usage: Usage = done.usage
    reason = {"type": (done.finish or Finish.ABORT).value} if ended else None
    meta: dict[str, Any] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
                            "finish_reason": reason}  # fmt: skip
    if logprobs is not None:
        meta |= logprob_pairs(logprobs)
    return {"text": text, "output_ids": ids, "meta_info": meta}


async def _events(service: Service, job: Job) -> AsyncGenerator[bytes, None]:
    """Text and ids are what is new, counts what there is."""
    done, wants = Collected(), job.requests[0].logprobs
    async with aclosing(service.run(job)) as chunks:
        async for _, chunk in chunks:
            done.note_end(chunk)
            logprobs = list(chunk.logprobs) if wants else None
            yield event(_answer(chunk.text, list(chunk.token_ids), done, logprobs, chunk.finish is not None))
