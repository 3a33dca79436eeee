"""`response_format` as a grammar. OpenAI's forms, LMDeploy's `regex_schema`, and the further kinds we have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tokenmill.errors import RequestError
from tokenmill.types import GrammarSpec


def grammar_of(form: dict[str, Any] | None) -> GrammarSpec | None:
    """None for text. Raises RequestError where the form lacks its part; what the part says is checked by the engine."""
    kind = (form or {}).get("type", "text")
    if kind == "text":
        return None
    make = _KINDS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise _refuse(f"response_format.type must be one of text, {', '.join(_KINDS)}")
    return make(form or {})


def _json_schema(form: dict[str, Any]) -> GrammarSpec:
    wrapped = form.get("json_schema", form)
    # The responses API has the schema beside the type, chat has it one level further down.
    schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
    if not isinstance(schema, dict):
        raise _refuse("a json_schema needs an object under `schema`")
    return GrammarSpec("json_schema", msgspec.json.encode(schema).decode())


def _text_part(kind: str, *names: str) -> Callable[[dict[str, Any]], GrammarSpec]:
    def make(form: dict[str, Any]) -> GrammarSpec:
        value = next((form[name] for name in names if name in form), None)
        if not isinstance(value, str) or not value:
            raise _refuse(f"a {form['type']} needs a text under `{names[0]}`")
        return GrammarSpec(kind, value)

    return make


def _choice(form: dict[str, Any]) -> GrammarSpec:
    return GrammarSpec("choice", msgspec.json.encode(form.get("choice")).decode())


def _structural_tag(form: dict[str, Any]) -> GrammarSpec:
    return GrammarSpec("structural_tag", msgspec.json.encode(form).decode())


_KINDS: dict[str, Callable[[dict[str, Any]], GrammarSpec]] = {
    "json_object": lambda form: GrammarSpec("json_object", "{}"),
    "json_schema": _json_schema,
    "regex_schema": _text_part("regex", "regex_schema", "regex"),
    "regex": _text_part("regex", "regex"),
    "grammar": _text_part("ebnf", "grammar"),
    "choice": _choice,
    "structural_tag": _structural_tag,
}


def _refuse(message: str) -> RequestError:
    return RequestError(message, 400, param="response_format", code="invalid_value")
