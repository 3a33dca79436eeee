"""How an endpoint's body stands in /openapi.json: by reference, since our own reader parses it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def body_of(schema: type[BaseModel]) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}
