"""InternLM2's tool calls: `<|action_start|><|plugin|>` + JSON {name, parameters} + `<|action_end|>`.

The end tag may be missing (it is a stop token). What is no call (bad JSON, no name) stays text, tags included, so that
nothing the model said is lost. `arguments` is taken for `parameters`. Code for `<|interpreter|>` stays text.
"""

from __future__ import annotations

import json
from typing import Any

from tokenmill.parse.events import Event, TextEvent, ToolCallEvent
from tokenmill.parse.tags import UntilTag

START, END, PLUGIN, INTERPRETER = "<|action_start|>", "<|action_end|>", "<|plugin|>", "<|interpreter|>"
TAGS = (START, END, PLUGIN, INTERPRETER)


class ToolParser:
    """Words before, between and behind calls are text; a call is told once it is whole."""

    def __init__(self) -> None:
        self._outside = UntilTag(START)
        self._inside: UntilTag | None = None
        self._body = ""

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        while text:
            if self._inside is None:
                text = self._feed_outside(text, events)
            else:
                text = self._feed_inside(self._inside, text, events)
        return events

    def finish(self) -> list[Event]:
        if self._inside is None:
            return _words(self._outside.finish())
        return self._call(self._body + self._inside.finish(), "")

    def _feed_outside(self, text: str, events: list[Event]) -> str:
        before, tag, behind = self._outside.feed(text)
        events += _words(before)
        if tag is not None:
            self._inside, self._body = UntilTag(END), ""
        return behind

    def _feed_inside(self, inside: UntilTag, text: str, events: list[Event]) -> str:
        before, tag, behind = inside.feed(text)
        self._body += before
        if tag is not None:
            events += self._call(self._body, END)
            self._outside, self._inside = UntilTag(START), None
        return behind

    def _call(self, body: str, end: str) -> list[Event]:
        call = _parse(body)
        return [call] if call is not None else _words(START + body + end)


def _words(text: str) -> list[Event]:
    return [TextEvent(text)] if text else []


def _parse(body: str) -> ToolCallEvent | None:
    stripped = body.strip()
    if not stripped.startswith(PLUGIN):
        return None
    try:
        value: Any = json.loads(stripped[len(PLUGIN) :])
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("parameters", value.get("arguments", {}))
    if isinstance(arguments, str):
        return ToolCallEvent(value["name"], arguments)
    return ToolCallEvent(value["name"], json.dumps(arguments, ensure_ascii=False))
