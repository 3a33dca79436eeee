"""POST /v1/responses."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.deadline import timeout_of
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.service import service_of
from tokenmill.serve.http.sse import EventStream
from tokenmill.serve.openai.collect import collect
from tokenmill.serve.openai.convert import chat_job
from tokenmill.serve.openai.describe import body_of
from tokenmill.serve.responses.answer import Asked, whole
from tokenmill.serve.responses.convert import chat_request, told_as_input
from tokenmill.serve.responses.events import Numbered, events, framing
from tokenmill.serve.responses.schema import ResponsesRequest

router = APIRouter(tags=["openai"])


@router.post("/v1/responses", summary="Answer, as items", openapi_extra=body_of(ResponsesRequest))
async def create_response(request: Request) -> Response:
    service = service_of(request)
    body, unknown = await read_json(request, ResponsesRequest)
    service.metrics.unknown_fields.inc(unknown)
    with told_as_input():
        job = chat_job(chat_request(body), service.engine, service.options, timeout_of(request, service.options))
    asked = Asked(replace(job, id="resp_" + job.id.rpartition("-")[2]), body)
    if body.stream:
        number = Numbered()
        stream = events(service, asked, number)
        return EventStream(stream, service.options.limits.ping_s, framing(asked, number))
    [done] = await unless_gone(request.receive, collect(service, asked.job))
    return Response(msgspec.json.encode(whole(asked, done)), media_type="application/json")
