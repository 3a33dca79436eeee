"""GET /v1/models and /v1/models/{name}."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokenmill.api.contract import TextEngine
from tokenmill.serve.http.service import service_of
from tokenmill.serve.openai.convert import check_model

router = APIRouter(tags=["openai"])


@router.get("/v1/models", summary="Served models")
async def list_models(request: Request) -> Response:
    engine = service_of(request).engine
    return JSONResponse({"object": "list", "data": [model_card(engine)]})


@router.get("/v1/models/{name:path}", summary="One served model")
async def show_model(request: Request, name: str) -> Response:
    engine = service_of(request).engine
    check_model(name, engine)
    return JSONResponse(model_card(engine))


def model_card(engine: TextEngine) -> dict[str, Any]:
    created = int(time.time())
    return {
        "id": engine.name,
        "object": "model",
        "created": created,
        "owned_by": "tokenmill",
        "root": engine.name,
        "parent": None,
        "max_model_len": engine.limits.max_model_tokens,
        "permission": [_permission(engine.name, created)],
    }


def _permission(name: str, created: int) -> dict[str, Any]:
    return {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": True,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
