"""JSON schemas of tools as TypeScript types, the way harmony shows them to a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenmill.tokenize.messages import tool_functions
from tokenmill.types import Message

_PLAIN = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}


def namespace(name: str, tools: Sequence[Message]) -> str:
    """All tools as one namespace."""
    types = "".join(_tool(function) for function in tool_functions(tools))
    return f"## {name}\n\nnamespace {name} {{\n\n{types}}} // namespace {name}"


def _tool(function: dict[str, Any]) -> str:
    about = f"// {function['description']}\n" if function.get("description") else ""
    parameters = function.get("parameters") or {}
    taken = f"(_: {_fields(parameters)})" if parameters.get("properties") else "()"
    return f"{about}type {function.get('name')} = {taken} => any;\n\n"


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required") or ()
    lines = [_field(name, kind, name in required) for name, kind in schema["properties"].items()]
    return "{\n" + "".join(lines) + "}"


def _field(name: str, kind: Any, required: bool) -> str:
    schema = kind if isinstance(kind, dict) else {}
    about = f"// {schema['description']}\n" if schema.get("description") else ""
    usual = ""
    if "default" in schema:
        shown = schema["default"] if schema.get("enum") else json.dumps(schema["default"], ensure_ascii=False)
        usual = f", // default: {shown}"
    return f"{about}{name}{'' if required else '?'}: {type_of(schema)}{usual},\n"


def type_of(schema: Any) -> str:
    """A schema's type; `any` where TypeScript cannot say it."""
    if not isinstance(schema, dict):
        return "any"
    choices = schema.get("oneOf") or schema.get("anyOf")
    if choices:
        found = " | ".join(type_of(choice) for choice in choices)
    else:
        found = _one(schema)
    return f"{found} | null" if schema.get("nullable") else found


def _one(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_one({**schema, "type": each}) for each in kind) or "any"
    if kind == "array":
        inner = type_of(schema.get("items"))
        return f"({inner})[]" if " | " in inner and "{" not in inner else f"{inner}[]"
    if kind == "object":
        return _fields(schema) if schema.get("properties") else "object"
    if kind == "string" and schema.get("enum"):
        return " | ".join(json.dumps(word, ensure_ascii=False) for word in schema["enum"])
    return _PLAIN.get(str(kind), "any")
