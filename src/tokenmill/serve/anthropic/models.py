"""GET /anthropic/v1/models."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokenmill.serve.http.service import service_of

router = APIRouter(tags=["anthropic"])


@router.get("/anthropic/v1/models", summary="Served models, in Anthropic's shape")
async def list_models(request: Request) -> Response:
    name = service_of(request).engine.name
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    card = {"id": name, "type": "model", "display_name": name, "created_at": created}
    return JSONResponse({"data": [card], "has_more": False, "first_id": name, "last_id": name})
