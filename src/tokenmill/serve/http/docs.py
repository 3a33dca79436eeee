"""The pages: `/` (`/docs`, `/redoc`), every route with a form to try it, and `/ui`, a chat. Static, no network."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

# A page is one file: its own inline script and style, and requests to this server only.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"


chat_router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/docs")
@router.get("/redoc")
async def docs() -> Response:
    return _page("docs.html")


@chat_router.get("/ui")
async def chat() -> Response:
    return _page("chat.html")


def _page(name: str) -> Response:
    html = files("tokenmill.serve.ui").joinpath(name).read_bytes()
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": _POLICY})
