"""The built-in model's held-out sets: items, goals, and the judge of an answer. Pure; no torch.

An item is a conversation up to the answer, the tools it offers, and what a right answer is. The file is JSON lines,
gzipped, made by `demo/heldout.py` from keys that training never draws.

Right means: `arithmetic` the last number is the result; `recall` the asked value is said and no other told value is;
`tools` exactly one call, its name and every argument as asked; `objects` one JSON object, nothing around it, valid
under the schema; `ending` an answer of the asked length that stops by itself. An answer that was cut is never right.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.errors import FormatError

GOALS = {"arithmetic": 0.95, "recall": 0.90, "tools": 0.95, "objects": 0.95, "ending": 0.99}
SETS = tuple(GOALS)
MAX_ANSWER_TOKENS = 480
MAX_FILE_BYTES = 16_000_000
_CALL_TAGS = re.compile(r"<\|(?:action_start|plugin|action_end|im_end)\|>")
_TYPES: dict[str, type] = {"string": str, "integer": int, "boolean": bool, "object": dict}


@dataclass(frozen=True, slots=True)
class DemoItem:
    """`messages` end with the user's turn; `tools` are function objects; `expect` is what the judge of `set` reads."""

    set: str
    messages: list[dict[str, str]]
    expect: dict[str, Any]
    tools: list[dict[str, Any]] = field(default_factory=list)


def load_items(path: Path) -> list[DemoItem]:
    """All items, in the file's order. Raises FormatError that names the line."""
    try:
        with gzip.open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FormatError(f"{path.name} is no gzipped text: {error}") from error
    return [_item(path, number, line) for number, line in enumerate(text.splitlines(), 1)]


def _item(path: Path, number: int, line: str) -> DemoItem:
    try:
        item = DemoItem(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path.name} line {number} is no item: {error}") from error
    if item.set not in GOALS:
        raise FormatError(f"{path.name} line {number}: set {item.set!r} is none of {', '.join(SETS)}")
    return item


def check(item: DemoItem, text: str, ended: bool) -> bool:
    """Whether the answer is right. Tool calls are JSON objects {name, parameters}, one a line, tags allowed."""
    return ended and _JUDGES[item.set](item.expect, text)


def _arithmetic(expect: dict[str, Any], text: str) -> bool:
    numbers = re.findall(r"-?\d+", text)
    return bool(numbers) and int(numbers[-1]) == expect["result"]


def _says(text: str, value: str) -> bool:
    """The value as a whole: no letter or digit of its own script goes on before or behind it."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])", text) is not None


def _recall(expect: dict[str, Any], text: str) -> bool:
    return _says(text, expect["value"]) and not any(_says(text, other) for other in expect["others"])


def _tools(expect: dict[str, Any], text: str) -> bool:
    lines = [line for line in _CALL_TAGS.sub("", text).split("\n") if line.strip()]
    call = _json(lines[0]) if len(lines) == 1 else None
    return isinstance(call, dict) and call.keys() == expect.keys() and same(call, expect)


def _objects(expect: dict[str, Any], text: str) -> bool:
    return follows(_json(text), expect["schema"])


def _ending(expect: dict[str, Any], text: str) -> bool:
    return bool(expect["min_chars"] <= len(text.strip()) <= expect["max_chars"])


_JUDGES: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "arithmetic": _arithmetic,
    "recall": _recall,
    "tools": _tools,
    "objects": _objects,
    "ending": _ending,
}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def same(a: Any, b: Any) -> bool:
    """Equal as JSON: `true` is not 1, and 1 is not 1.0."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and bool(a == b)


def follows(value: Any, schema: dict[str, Any]) -> bool:
    """JSON-schema validity for what the sets use: type, properties, required. Unknown properties are refused."""
    wanted = _TYPES[schema["type"]]
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        return False
    if not isinstance(value, dict):
        return True
    properties = schema.get("properties", {})
    complete = all(name in value for name in schema.get("required", []))
    return complete and all(name in properties and follows(v, properties[name]) for name, v in value.items())
