"""POST /pooling and POST /v1/embeddings: the model's final hidden state of each input's last token.

Of a reward model that is its score. Embeddings are brought to length one, cut to `dimensions` before where asked for.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from tokenmill.errors import RequestError
from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.deadline import timeout_of
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.service import Job, service_of
from tokenmill.serve.native.convert import scoring_job
from tokenmill.serve.native.schema import PoolingRequest
from tokenmill.serve.openai.collect import Collected, collect
from tokenmill.serve.openai.describe import body_of
from tokenmill.types import Want

router = APIRouter(tags=["native"])
Vector = NDArray[np.float32]


@router.post("/pooling", summary="Pooled states, or a reward model's scores", openapi_extra=body_of(PoolingRequest))
async def pooling(request: Request) -> Response:
    body, job, vectors, done = await _pool(request)
    data = [{"index": i, "object": "pooling", "data": _score(v, body)} for i, v in enumerate(vectors)]
    return _list(job, "pool", data, done)


@router.post("/v1/embeddings", summary="Embeddings", openapi_extra=body_of(PoolingRequest))
async def embeddings(request: Request) -> Response:
    body, job, vectors, done = await _pool(request)
    data = [
        {"index": i, "object": "embedding", "embedding": _plain(unit(v, body.dimensions), body)}
        for i, v in enumerate(vectors)
    ]
    return _list(job, "embd", data, done)


async def _pool(request: Request) -> tuple[PoolingRequest, Job, list[Vector], list[Collected]]:
    service = service_of(request)
    body, unknown = await read_json(request, PoolingRequest)
    service.metrics.unknown_fields.inc(unknown)
    job = scoring_job(body.input, service.engine, body.model, Want.POOL, timeout_of(request, service.options))
    done = await unless_gone(request.receive, collect(service, job))
    return body, job, [vector(one) for one in done], done


def vector(done: Collected) -> Vector:
    """The pooled state of one input."""
    pool = done.arrays.get("pool")
    if pool is None:
        raise RequestError("this engine gives no pooled states", 501)
    return np.frombuffer(pool.data, np.dtype(pool.dtype)).reshape(-1).astype(np.float32)


def unit(state: Vector, dimensions: int | None) -> Vector:
    """A state, cut to `dimensions` where asked for, at length one."""
    if dimensions is not None and dimensions > len(state):
        raise RequestError(f"dimensions is {dimensions}; the model has {len(state)}", 400, param="dimensions")
    part = state[:dimensions]
    return part / np.float32(max(float(np.linalg.norm(part)), 1e-12))


def _plain(vector: Vector, body: PoolingRequest) -> Any:
    """Numbers, or their bytes: little-endian float32, as OpenAI's client asks for by itself."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _score(vector: Vector, body: PoolingRequest) -> Any:
    """A vector of one is a number."""
    if len(vector) == 1 and body.encoding_format != "base64":
        return float(vector[0])
    return _plain(vector, body)


def _list(job: Job, prefix: str, data: list[dict[str, Any]], done: list[Collected]) -> Response:
    tokens = sum(one.usage.prompt_tokens for one in done)
    answer = {
        "id": f"{prefix}-{job.id.rpartition('-')[2]}", "object": "list", "created": job.created, "model": job.model,
        "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }  # fmt: skip
    return Response(msgspec.json.encode(answer), media_type="application/json")
