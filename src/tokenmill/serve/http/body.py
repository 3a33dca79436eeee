"""A request's JSON body: read within limits, decoded strictly, validated by a schema.

Refused with 400: another content type, bad UTF-8, lone surrogates, NaN, Infinity, numbers beyond float64 or int64,
depth over MAX_DEPTH, anything but an object at the top. Fields the schema does not know are dropped and counted.
A body is decoded on the event loop, so it is also refused (413) where it holds so many values that others would wait.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Receive

from tokenmill.errors import RequestError
from tokenmill.serve.http.errors import from_validation

MAX_DEPTH = 64
# Within 32 MiB: 64 prompts of 64k ids. Signs within texts count too, which no context is long enough for.
MAX_COMMAS = 1 << 22
MAX_BRACKETS = 1 << 19
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1

Schema = TypeVar("Schema", bound=BaseModel)


async def read_json(request: Request, schema: type[Schema]) -> tuple[Schema, int]:
    """The validated body and how many unknown top-level fields it had."""
    return validated(await read_object(request), schema)


async def read_object(request: Request) -> dict[str, Any]:
    """The body as it came, strictly decoded."""
    check_content_type(request.headers.get("content-type", ""))
    return decode(await read_all(request.receive))


def validated(value: dict[str, Any], schema: type[Schema]) -> tuple[Schema, int]:
    known = {field.alias or name for name, field in schema.model_fields.items()}
    try:
        return schema.model_validate(value), len(value.keys() - known)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False)) from None


def check_content_type(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError("the Content-Type must be application/json", 400, code="invalid_content_type")


async def read_all(receive: Receive) -> bytes:
    """The whole body; its size is bounded by the transport layer."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("client closed the connection", 499, code="client_gone")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def decode(raw: bytes) -> dict[str, Any]:
    """A JSON object, strictly."""
    if not raw.strip():
        raise RequestError("the body is empty; a JSON object is needed", 400, code="invalid_json")
    if raw.count(b",") > MAX_COMMAS or raw.count(b"[") + raw.count(b"{") > MAX_BRACKETS:
        told = f"the body has more than {MAX_COMMAS} commas or {MAX_BRACKETS} opening brackets; send less at once"
        raise RequestError(told, 413, code="body_too_large")
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        position = f" ({error})" if isinstance(error, msgspec.DecodeError) and "byte" in str(error) else ""
        raise RequestError(f"the body is not valid JSON{position}", 400, code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object", 400, code="invalid_json")
    check_shape(value)
    return value


def check_shape(value: Any) -> None:
    """Bounds nesting and integers, level by level, without recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            below += _children(item)
        if not below:
            return
        level = below
    raise _too_deep()


def _children(item: dict[str, Any] | list[Any]) -> list[Any]:
    """The objects and lists in one; its integers are checked. What may be millions is done without a loop of ours."""
    values = item.values() if isinstance(item, dict) else item
    kinds = set(map(type, values))
    if int in kinds:
        whole = values if len(kinds) == 1 else [value for value in values if type(value) is int]
        if min(whole) < INT64_MIN or max(whole) > INT64_MAX:
            raise RequestError("an integer lies beyond 64 bits", 400, code="invalid_json")
    return [value for value in values if isinstance(value, dict | list)] if {dict, list} & kinds else []


def _too_deep() -> RequestError:
    return RequestError(f"the body is nested deeper than {MAX_DEPTH} levels", 400, code="invalid_json")
