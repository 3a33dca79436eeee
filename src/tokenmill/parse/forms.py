"""How a dialect writes tool calls, as data: what a grammar needs so that an answer is calls and nothing else.

A call is a list of parts. A part is a text as it stands; {"schema": S}, the JSON text of a value that S allows;
{"words": C}, any text without the character C; {"one_of": [text, ...]}; or {"maybe": [part, ...]}. Answers are
`open call (between call)* close`. `trigger` is the text by which a call is told from words before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Part = str | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around and between the calls of one answer. `last`: nothing may follow them, as no tag ends them."""

    trigger: str
    open: str = ""
    between: str = ""
    close: str = ""
    last: bool = False


def json_call(before: str, after: str) -> Callable[[str, dict[str, Any]], list[Part]]:
    """Calls whose arguments are one JSON object. `before` holds `NAME` where the quoted name goes."""

    def parts(name: str, schema: dict[str, Any]) -> list[Part]:
        return [before.replace("NAME", json.dumps(name, ensure_ascii=False)), {"schema": schema}, after]

    return parts


def parameter_calls(
    before: str, after: str, key: Callable[[str, bool], str], behind: str
) -> Callable[[str, dict[str, Any]], list[Part]]:
    """Calls that write each argument by itself: `key(name, is_text)`, the value, `behind`. `before` holds `NAME`.

    Required parameters come in the order of the schema; the others may be left out.
    """

    def parts(name: str, schema: dict[str, Any]) -> list[Part]:
        found: list[Part] = [before.replace("NAME", name)]
        required = schema.get("required") or ()
        for parameter, kind in (schema.get("properties") or {}).items():
            value = value_part(kind, schema)
            pair: list[Part] = [key(parameter, "schema" not in value), value, behind]
            found += pair if parameter in required else [{"maybe": pair}]
        return [*found, after]

    return parts


def value_part(kind: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's value: text stands without quotes, everything else as JSON."""
    if not isinstance(kind, dict) or kind.get("type") != "string":
        # References look into the whole schema's definitions.
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        return {"schema": {**kind, **shared} if isinstance(kind, dict) else kind}
    words = [kind["const"]] if isinstance(kind.get("const"), str) else kind.get("enum")
    return {"one_of": words} if words else {"words": "<"}
