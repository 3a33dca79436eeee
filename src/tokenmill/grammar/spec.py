"""A `GrammarSpec` as a grammar text of llguidance: sizes checked, one form per kind.

Kinds and their `text`: json_schema (a schema), json_object (not read), regex (matches the whole answer), choice (a JSON
list of texts), ebnf (Lark), structural_tag ({"structures": [{begin, schema, end}], "triggers": [...]}), tool_calls
(grammar/calls.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from llguidance import LLMatcher

from tokenmill.grammar.calls import calls_grammar
from tokenmill.grammar.lark import quoted, refuse, schema_text, spelled
from tokenmill.types import GrammarSpec

MAX_TEXT_BYTES = 64 * 1024
MAX_DEPTH = 32
MAX_CHOICES = 1024
SpecialIds = Mapping[str, int]


def grammar_text(spec: GrammarSpec, special_ids: SpecialIds) -> str:
    """What llguidance compiles. `special_ids`: special tokens, which no text can spell. Raises RequestError (400)."""
    make = _KINDS.get(spec.kind)
    if make is None:
        raise refuse(f"there is no grammar kind {spec.kind!r}; there are {', '.join(_KINDS)}")
    size = len(spec.text.encode("utf-8", "replace"))
    if size > MAX_TEXT_BYTES:
        raise refuse(f"the grammar has {size} bytes; at most {MAX_TEXT_BYTES} are taken")
    return make(spec.text, special_ids)


def depth(value: Any) -> int:
    """Levels of nesting of a JSON value, without recursion."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        item, level = todo.pop()
        deepest = max(deepest, level)
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        todo += [(child, level + 1) for child in children if isinstance(child, dict | list)]
    return deepest


def _json(text: str, what: str) -> Any:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise refuse(f"the {what} is not JSON: {error}") from None
    levels = depth(value)
    if levels > MAX_DEPTH:
        raise refuse(f"the {what} is nested {levels} levels deep; at most {MAX_DEPTH} are taken")
    return value


def _json_schema(text: str, special_ids: SpecialIds) -> str:
    return str(LLMatcher.grammar_from_json_schema(schema_text(_json(text, "JSON schema"))))


def _json_object(text: str, special_ids: SpecialIds) -> str:
    return str(LLMatcher.grammar_from_json_schema(schema_text({"type": "object"})))


def _regex(text: str, special_ids: SpecialIds) -> str:
    return str(LLMatcher.grammar_from_regex(text))


def _choice(text: str, special_ids: SpecialIds) -> str:
    words = _texts(_json(text, "list of choices"))
    if not words:
        raise refuse("choices are a JSON list of texts that are not empty")
    if len(words) > MAX_CHOICES:
        raise refuse(f"there are {len(words)} choices; at most {MAX_CHOICES} are taken")
    return "start: " + " | ".join(quoted(word) for word in dict.fromkeys(words))


def _ebnf(text: str, special_ids: SpecialIds) -> str:
    return str(LLMatcher.grammar_from_lark(text))


def _structural_tag(text: str, special_ids: SpecialIds) -> str:
    """Free text in which a trigger opens one of the structures that begin with it."""
    value = _json(text, "structural tag")
    value = value if isinstance(value, dict) else {}
    structures, triggers = value.get("structures"), _texts(value.get("triggers"))
    if not triggers or not isinstance(structures, list) or not structures:
        raise refuse("a structural tag has structures [{begin, schema, end}] and triggers [text]")
    rules = [_structure(number, entry, triggers, special_ids) for number, entry in enumerate(structures)]
    names = " | ".join(f"tag_{number}" for number in range(len(rules)))
    return "\n".join([f"start: ({names})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/", *rules])


def _structure(number: int, entry: Any, triggers: list[str], special_ids: SpecialIds) -> str:
    begin, end = (entry.get(key, "") if isinstance(entry, dict) else None for key in ("begin", "end"))
    if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(entry.get("schema", {}), dict | bool):
        raise refuse("a structure has texts begin and end and a schema that is an object")
    trigger = next((word for word in triggers if begin.startswith(word)), None)
    if trigger is None:
        raise refuse(f"structure {begin!r} begins with none of the triggers {triggers}")
    body = f"{spelled(begin[len(trigger) :], special_ids)} %json {schema_text(entry.get('schema', {}))} "
    body += spelled(end, special_ids)
    if trigger in special_ids:
        return f"tag_{number}: TEXT <[{special_ids[trigger]}]> {body}"
    return f"open_{number}[lazy]: TEXT {quoted(trigger)}\ntag_{number}: open_{number} {body}"


def _texts(value: Any) -> list[str]:
    """The value where it is a list of texts that are not empty; no text otherwise."""
    fine = isinstance(value, list) and all(isinstance(word, str) and word for word in value)
    return value if fine else []


def _tool_calls(text: str, special_ids: SpecialIds) -> str:
    return calls_grammar(_json(text, "tool list"), special_ids)


_KINDS: dict[str, Callable[[str, SpecialIds], str]] = {
    "json_schema": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "ebnf": _ebnf,
    "structural_tag": _structural_tag,
    "tool_calls": _tool_calls,
}
KINDS = tuple(_KINDS)
