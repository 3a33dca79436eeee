"""Whether the server lives, whether it takes work, and which version it is."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokenmill import __version__
from tokenmill.errors import RequestError
from tokenmill.serve.http.errors import error_response
from tokenmill.serve.http.service import Phase, service_of

router = APIRouter(tags=["health"])


@router.get("/health", summary="Status of server and engine")
async def health(request: Request) -> Response:
    ready, status, message = await service_of(request).health()
    # A server that sleeps is well; whether it takes work, /health/ready says.
    well = ready or status == Phase.SLEEPING
    headers = {} if well else {"Retry-After": "2"}
    return JSONResponse({"status": status, "message": message}, 200 if well else 503, headers)


@router.get("/health/live", summary="200 while the process answers")
async def live() -> Response:
    return JSONResponse({"status": "alive"})


@router.get("/health/ready", summary="200 while requests are taken, else 503")
async def ready(request: Request) -> Response:
    is_ready, status, message = await service_of(request).health()
    if is_ready:
        return JSONResponse({"status": status})
    return error_response(RequestError(message, 503, code=status))


@router.get("/version", summary="Version of this server")
async def show_version() -> Response:
    return JSONResponse({"version": __version__})
