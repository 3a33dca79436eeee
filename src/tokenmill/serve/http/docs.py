"""The page at `/`: every route with its schema and a form to try it. One static file, no network."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

# The page is one file: its own inline script and style, and requests to this server only.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"


@router.get("/")
async def page() -> Response:
    html = files("tokenmill.serve.ui").joinpath("docs.html").read_bytes()
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": _POLICY})
