"""JSON schemas of tools as TypeScript types, the way GPT-OSS's own chat template shows them, white space and all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenmill.tokenize.messages import tool_functions
from tokenmill.types import Message

_PLAIN = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}
# An inner type of more characters is not shown.
MOST_INNER = 50
# With the white space that the published template leaves: before a nested property's type, between the choices of
# `oneOf`, and before a choice's default.
NESTED, OR, USUAL = ": \n" + " " * 16, " | \n", " " * 20 + "// default: "


def namespace(name: str, tools: Sequence[Message]) -> str:
    """All tools as one namespace."""
    types = "".join(_tool(function) for function in tool_functions(tools))
    return f"## {name}\n\nnamespace {name} {{\n\n{types}}} // namespace {name}"


def _tool(function: dict[str, Any]) -> str:
    about = f"// {function['description']}\n" if function.get("description") else ""
    parameters = function.get("parameters") or {}
    required = parameters.get("required") or ()
    fields = [_field(name, kind, name in required) for name, kind in (parameters.get("properties") or {}).items()]
    taken = f"(_: {{\n{''.join(fields)}}})" if fields else "()"
    return f"{about}type {function.get('name')} = {taken} => any;\n\n"


def _field(name: str, kind: Any, required: bool) -> str:
    schema = kind if isinstance(kind, dict) else {}
    about = f"// {schema['description']}\n" if schema.get("description") else ""
    return f"{about}{name}{'' if required else '?'}: {type_of(schema)}{_usual(schema)},\n"


def _usual(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return ""
    if schema.get("oneOf") and not schema.get("enum"):
        return f"// default: {schema['default']}"
    usual = schema["default"] if schema.get("enum") else json.dumps(schema["default"], ensure_ascii=False)
    return f", // default: {usual}"


def type_of(schema: Any) -> str:
    """A schema's type; `any` where there is none for it."""
    if not isinstance(schema, dict):
        return "any"
    kind = schema.get("type")
    null = " | null" if schema.get("nullable") else ""
    if kind == "array":
        return _array(schema.get("items")) + null
    if isinstance(kind, list) and kind:
        return " | ".join(map(str, kind))
    if schema.get("oneOf"):
        return OR.join(_choice(choice) for choice in schema["oneOf"])
    if kind == "object":
        return _object(schema)
    if kind == "string":
        return " | ".join(f'"{word}"' for word in schema["enum"]) if schema.get("enum") else "string" + null
    return _PLAIN.get(str(kind), "any")


def _array(items: Any) -> str:
    if not isinstance(items, dict) or not items:
        return "any[]"
    kind = items.get("type")
    inner = _PLAIN[kind] if isinstance(kind, str) and kind in _PLAIN else type_of(items)
    return "any[]" if inner == "object | object" or len(inner) > MOST_INNER else f"{inner}[]"


def _choice(kind: Any) -> str:
    schema = kind if isinstance(kind, dict) else {}
    about = f"// {schema['description']}" if schema.get("description") else ""
    usual = f"{USUAL}{json.dumps(schema['default'], ensure_ascii=False)}" if "default" in schema else ""
    return type_of(schema) + about + usual


def _object(schema: dict[str, Any]) -> str:
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    if not properties:
        return "object"
    fields = (f"{name}{'' if name in required else '?'}{NESTED}{type_of(kind)}" for name, kind in properties.items())
    return "{\n" + ", ".join(fields) + "}"
