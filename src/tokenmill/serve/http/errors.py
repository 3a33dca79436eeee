"""Error answers. One body carries both shapes: OpenAI's nested `error` object and LMDeploy's flat keys; the Anthropic
routes have their own shape, whichever layer refuses.

The flat `code` is the HTTP status, the nested one a stable word (or null). No answer carries a traceback, a path, an
address or the request's own content beyond the field's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokenmill.errors import EngineDeadError, RequestError
from tokenmill.log import get_logger, safe

RETRY_AFTER_S = {429: "1", 503: "2"}
ANTHROPIC_PATHS = ("/v1/messages", "/anthropic/")
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_KINDS = {**_KINDS, 413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}
# The rest of such a request is not read, so the connection cannot be used again.
_CLOSES = (408, 413, 431)


def error_kind(status: int) -> str:
    """The `type` word that goes with a status."""
    return _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = error_kind(status)
    return {
        "error": {"message": message, "type": kind, "param": param, "code": code},
        "object": "error",
        "message": message,
        "type": kind,
        "param": param,
        "code": status,
    }


def anthropic_error(error: RequestError) -> dict[str, Any]:
    kind = _ANTHROPIC_KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


class ErrorResponse(Response):
    """An error answer that takes the shape of the path it is sent to."""

    media_type = "application/json"

    def __init__(self, error: RequestError, headers: Mapping[str, str]) -> None:
        self.error = error
        body = error_body(error.status, str(error), error.param, error.code)
        super().__init__(msgspec.json.encode(body), error.status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(ANTHROPIC_PATHS):
            self.body = msgspec.json.encode(anthropic_error(self.error))
            self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    """`error` as an answer, with Retry-After where trying again may help."""
    all_headers = dict(headers or {})
    if error.status in RETRY_AFTER_S:
        all_headers.setdefault("Retry-After", RETRY_AFTER_S[error.status])
    if error.status in _CLOSES:
        all_headers["Connection"] = "close"
    return ErrorResponse(error, all_headers)


def as_request_error(error: BaseException) -> RequestError:
    """What a client is told of any failure; what is not meant for users becomes a plain 500 and goes to the log."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, EngineDeadError):
        return RequestError("the engine is not running; try again later", 503, code="engine_dead")
    get_logger().error("request failed: %s: %s", type(error).__name__, safe(str(error)), exc_info=error)
    return RequestError("internal error", 500, code="internal_error")


def from_validation(errors: list[Any]) -> RequestError:
    """The first of pydantic's complaints as `field.path: text`. Never echoes the input."""
    first = errors[0]
    # Parts in <> are tags of unions, which the client never wrote.
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("<"))[:256]
    text = str(first["msg"]).removeprefix("Value error, ")
    message = f"{safe(where)}: {text}" if where else text
    return RequestError(message, 400, param=safe(where) or None, code="invalid_value")


def install(app: FastAPI) -> None:
    """Every failure of every route leaves in our shape."""

    async def on_error(request: Request, error: Exception) -> Response:
        return error_response(as_request_error(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = HTTPStatus(error.status_code).phrase
        return error_response(RequestError(message, error.status_code), error.headers)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError | ValidationError)
        return error_response(from_validation(list(error.errors())))

    app.add_exception_handler(RequestError, on_error)
    app.add_exception_handler(EngineDeadError, on_error)
    app.add_exception_handler(Exception, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
