"""`response_format`, as OpenAI and LMDeploy write it, as a GrammarSpec."""

from __future__ import annotations

import json
from typing import Any

from tokenmill.errors import RequestError
from tokenmill.types import GrammarSpec

TYPES = ("text", "json_object", "json_schema", "regex_schema", "structural_tag")


def grammar_of(response_format: dict[str, Any] | None) -> GrammarSpec | None:
    """None where any text will do. Raises RequestError on a type or a form that is not known."""
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return GrammarSpec("json_object", "")
    if kind == "json_schema":
        return GrammarSpec("json_schema", json.dumps(_schema(response_format)))
    if kind == "regex_schema":
        return GrammarSpec("regex", _text(response_format, "regex_schema"))
    if kind == "structural_tag":
        return GrammarSpec("structural_tag", json.dumps(response_format))
    raise _refuse(f"response_format.type is {str(kind)[:60]!r}; it must be one of {', '.join(TYPES)}")


def _schema(response_format: dict[str, Any]) -> Any:
    """OpenAI wraps the schema with a name; LMDeploy also takes it bare."""
    value = response_format.get("json_schema")
    if isinstance(value, dict):
        wrapped = value.get("schema", value.get("schema_"))
        return value if wrapped is None else wrapped
    raise _refuse("response_format.json_schema must be an object with the schema in `schema`")


def _text(response_format: dict[str, Any], name: str) -> str:
    value = response_format.get(name)
    if not isinstance(value, str) or not value:
        raise _refuse(f"response_format.{name} must be a text that is not empty")
    return value


def _refuse(message: str) -> RequestError:
    return RequestError(message, param="response_format", code="invalid_value")
