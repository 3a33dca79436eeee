"""POST /v1/messages."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenmill.serve.anthropic.answer import FRAMING, events, message
from tokenmill.serve.anthropic.convert import chat_request, check_version
from tokenmill.serve.anthropic.schema import MessagesRequest
from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.deadline import timeout_of
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.service import service_of
from tokenmill.serve.http.sse import EventStream
from tokenmill.serve.openai.collect import collect
from tokenmill.serve.openai.convert import chat_job
from tokenmill.serve.openai.describe import body_of

router = APIRouter(tags=["anthropic"])


@router.post("/v1/messages", summary="Answer a conversation", openapi_extra=body_of(MessagesRequest))
async def create_message(request: Request) -> Response:
    service = service_of(request)
    check_version(request)
    body, unknown = await read_json(request, MessagesRequest)
    service.metrics.unknown_fields.inc(unknown)
    job = chat_job(chat_request(body), service.engine, service.options, timeout_of(request, service.options))
    job = replace(job, id="msg_" + job.id.rpartition("-")[2])
    if body.stream:
        return EventStream(events(service, job), service.options.limits.ping_s, FRAMING)
    [done] = await unless_gone(request.receive, collect(service, job))
    return Response(msgspec.json.encode(message(job, done)), media_type="application/json")
