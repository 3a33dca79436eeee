"""POST /v1/rerank and /rerank: documents by likeness to a query, in Jina's and Cohere's shape.

The likeness is the cosine of pooled states, as `/v1/embeddings` gives them. A reward model has one score and no states
to compare: it is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenmill.errors import RequestError
from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.deadline import timeout_of
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.service import Job, service_of
from tokenmill.serve.native.convert import scoring_job
from tokenmill.serve.native.pooling import unit, vector
from tokenmill.serve.native.schema import RerankRequest
from tokenmill.serve.openai.collect import Collected, collect
from tokenmill.serve.openai.describe import body_of
from tokenmill.types import Want

router = APIRouter(tags=["native"])


@router.post("/v1/rerank", summary="Documents by likeness to a query", openapi_extra=body_of(RerankRequest))
@router.post("/rerank", include_in_schema=False)
async def rerank(request: Request) -> Response:
    service = service_of(request)
    body, unknown = await read_json(request, RerankRequest)
    service.metrics.unknown_fields.inc(unknown)
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    timeout_s = timeout_of(request, service.options)
    job = scoring_job((body.query, *texts), service.engine, body.model, Want.POOL, timeout_s)
    done = await unless_gone(request.receive, collect(service, job))
    return Response(msgspec.json.encode(_answer(body, job, texts, done)), media_type="application/json")


def _answer(body: RerankRequest, job: Job, texts: list[str], done: list[Collected]) -> dict[str, Any]:
    scores = likeness(done)
    best = sorted(range(len(texts)), key=lambda place: (-scores[place], place))[: body.top_n]
    results: list[dict[str, Any]] = [{"index": place, "relevance_score": scores[place]} for place in best]
    if body.return_documents:
        results = [{**result, "document": {"text": texts[result["index"]]}} for result in results]
    tokens = sum(one.usage.prompt_tokens for one in done)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"id": f"rerank-{job.id.rpartition('-')[2]}", "model": job.model, "results": results, "usage": usage}


def likeness(done: list[Collected]) -> list[float]:
    """The cosine of each further state with the first."""
    query, *documents = (vector(one) for one in done)
    if len(query) == 1:
        raise RequestError("this model gives one score a text and no embedding; use /pooling", 501, param="model")
    return [float(np.dot(unit(query, None), unit(document, None))) for document in documents]
