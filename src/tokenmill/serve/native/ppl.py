"""POST /get_ppl: the mean cross-entropy of a text's tokens, under LMDeploy's name for it (it is not exponentiated)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokenmill.errors import RequestError
from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.deadline import timeout_of
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.service import service_of
from tokenmill.serve.native.convert import scoring_job
from tokenmill.serve.native.schema import PplRequest
from tokenmill.serve.openai.collect import Collected, collect
from tokenmill.serve.openai.describe import body_of
from tokenmill.types import Want

router = APIRouter(tags=["native"])


@router.post("/get_ppl", summary="Mean cross-entropy of a text", openapi_extra=body_of(PplRequest))
async def get_ppl(request: Request) -> Response:
    service = service_of(request)
    body, unknown = await read_json(request, PplRequest)
    service.metrics.unknown_fields.inc(unknown)
    timeout_s = timeout_of(request, service.options)
    job = scoring_job(body.input, service.engine, None, Want.PROMPT_LOGPROBS, timeout_s)
    done = await unless_gone(request.receive, collect(service, job))
    values = [cross_entropy(one) for one in done]
    return JSONResponse({"ppl": values[0] if len(values) == 1 else values})


def cross_entropy(done: Collected) -> float:
    """Over every token but the first, which nothing predicts."""
    logprobs = [entry.logprob for entry in done.prompt_logprobs or () if entry is not None]
    if not logprobs:
        raise RequestError("the input has one token, which nothing predicts; send more", 400, param="input")
    return -sum(logprobs) / len(logprobs)
