"""Tool calls between tags: the machine that every dialect of `tools/` is made of.

A dialect says how a call opens and closes and reads what stands between. What is no call there (bad JSON, no name)
stays text, tags included, so that nothing the model said is lost. A call is told once it is whole; at the end of an
answer the closing tag may be missing (it is often a stop token).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenmill.parse.events import Event, TextEvent, ToolCallEvent
from tokenmill.parse.tags import UntilTag
from tokenmill.types import Message

Read = Callable[[str], Sequence[ToolCallEvent]]


class TaggedCalls:
    """A Parser (parse/events.py). `read(body)` gives the calls in a block, none where it is no call.

    `ends`: the closing tag of each opening one; a closing tag that is empty is never met, the block ends with the
    answer.
    """

    def __init__(self, ends: Mapping[str, str], read: Read) -> None:
        self._ends = ends
        self._read = read
        self._outside = UntilTag(*ends)
        self._inside: UntilTag | None = None
        self._start = ""
        self._body = ""
        self._gap = ""
        self._after_call = False

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        while text:
            text = self._step(text, events)
        return events

    def finish(self) -> list[Event]:
        if self._inside is None:
            events = self._words(self._outside.finish())
        else:
            events = self._call(self._body + self._inside.finish(), "")
        return events if self._after_call or not self._gap else [*events, TextEvent(self._gap)]

    def _step(self, text: str, events: list[Event]) -> str:
        if self._inside is None:
            before, tag, behind = self._outside.feed(text)
            events += self._words(before)
            if tag is not None:
                self._start, self._body, self._inside = tag, "", UntilTag(self._ends[tag])
            return behind
        before, tag, behind = self._inside.feed(text)
        self._body += before
        if tag is not None:
            events += self._call(self._body, tag)
            self._outside, self._inside = UntilTag(*self._ends), None
        return behind

    def _call(self, body: str, end: str) -> list[Event]:
        calls = self._read(body)
        if not calls:
            return self._words(self._start + body + end)
        # White space before a call, or behind the last one, only sets it off.
        self._gap, self._after_call = "", True
        return list(calls)

    def _words(self, text: str) -> list[Event]:
        """Text, but for white space at its end, which is held back until it is known what follows."""
        text = self._gap + text
        shown = text.rstrip()
        self._gap = text[len(shown) :]
        self._after_call = self._after_call and not shown
        return [TextEvent(shown)] if shown else []


def call_of(value: Any) -> ToolCallEvent | None:
    """The call in a JSON value {name, arguments or parameters}."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return ToolCallEvent(value["name"], arguments if isinstance(arguments, str) else to_json(arguments))


def calls_of(text: str) -> list[ToolCallEvent]:
    """The calls in a JSON text: an object or a list of them. None where one of them is no call."""
    value = from_json(text)
    found = [call_of(item) for item in (value if isinstance(value, list) else [value])]
    calls = [call for call in found if call is not None]
    return calls if len(calls) == len(found) else []


def from_json(text: str) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def parameter_types(tools: Sequence[Message], name: str) -> dict[str, Any]:
    """The schema of each parameter of a tool, by name."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties")
            return properties if isinstance(properties, dict) else {}
    return {}


def typed(text: str, schema: Any) -> Any:
    """A parameter written without quotes, as its schema wants it: text stays text, the rest is read as JSON."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string" or (isinstance(kind, list) and "string" in kind and text != "null"):
        return text
    value = from_json(text)
    if value is None and text.strip() != "null":
        # Python's spelling is what models write when they do not write JSON's.
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)
    return value
