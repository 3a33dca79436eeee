"""GET /metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from tokenmill.engine.contract import Stats
from tokenmill.errors import EngineDeadError
from tokenmill.serve.http.service import Service, service_of

router = APIRouter(tags=["health"])


@router.get("/metrics", summary="Prometheus figures")
async def metrics(request: Request) -> Response:
    service = service_of(request)
    admission = service.admission
    if admission is None:
        return Response(b"", media_type=CONTENT_TYPE_LATEST)
    text = service.metrics.render(await _stats(service), admission.running, admission.waiting)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _stats(service: Service) -> Stats:
    """The engine's snapshot; of a dead engine, zeros, so that counters stay readable."""
    try:
        async with asyncio.timeout(0.8):
            return await service.engine.stats()
    except (EngineDeadError, TimeoutError):
        return Stats(alive=False)
