"""POST /v1/messages/count_tokens: what `usage.input_tokens` of the same messages will be."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokenmill.serve.anthropic.convert import chat_request, check_version
from tokenmill.serve.anthropic.schema import CountRequest
from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.service import service_of
from tokenmill.serve.openai.convert import chat_job
from tokenmill.serve.openai.describe import body_of

router = APIRouter(tags=["anthropic"])


@router.post("/v1/messages/count_tokens", summary="Count a conversation", openapi_extra=body_of(CountRequest))
async def count_tokens(request: Request) -> Response:
    service = service_of(request)
    check_version(request)
    body, unknown = await read_json(request, CountRequest)
    service.metrics.unknown_fields.inc(unknown)
    wish = chat_job(chat_request(body), service.engine, service.options, None).requests[0]
    ids = await service.engine.codec.prompt_ids(wish, wish.tools)
    return JSONResponse({"input_tokens": len(ids)})
