"""Pieces of llguidance's Lark that grammars of several kinds are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenmill.errors import RequestError

# White space between JSON tokens: what people and json.dumps write, and too little to fill an answer with.
SPACES = r"( |\n[ \t]{0,32})"


def schema_text(value: Any) -> str:
    """A JSON schema as llguidance reads it, with our rule of white space."""
    if not isinstance(value, dict | bool):
        raise refuse(f"a JSON schema is an object, not {json.dumps(value)[:40]}")
    if value is False:
        raise refuse("the JSON schema is false, which nothing meets")
    return json.dumps({**(value if isinstance(value, dict) else {}), "x-guidance": {"whitespace_pattern": SPACES}})


def spelled(text: str, special_ids: Mapping[str, int]) -> str:
    """A text as Lark strings, special tokens in it as what they are."""
    found = min(((text.find(word), -len(word), word) for word in special_ids if word and word in text), default=None)
    if found is None:
        return quoted(text) if text else ""
    at, _, word = found
    before = quoted(text[:at]) if at else ""
    return f"{before} <[{special_ids[word]}]> {spelled(text[at + len(word) :], special_ids)}"


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def refuse(message: str) -> RequestError:
    return RequestError(message, param="response_format", code="invalid_grammar")
