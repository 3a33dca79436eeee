"""`<think>` ... `</think>`: reasoning before the answer.

With `inside` the answer starts within reasoning (a template that ends in `<think>`, or a model that always thinks):
text before `</think>` is reasoning even without an opening tag, and an answer cut off before it is all reasoning. Tags
and the newlines around them are never shown.
"""

from __future__ import annotations

from typing import Any

from tokenmill.parse.events import Event, ReasoningEvent, TextEvent
from tokenmill.parse.tags import UntilTag

OPEN, CLOSE = "<think>", "</think>"
TAGS = (OPEN, CLOSE)


def starts_inside(options: dict[str, Any]) -> bool:
    """Whether the template's options leave the answer inside reasoning from the start."""
    return options.get("enable_thinking") is not False


class ReasoningParser:
    """Only one block is reasoning, at the start of the answer; later tags are text."""

    def __init__(self, inside: bool = True) -> None:
        self._start = ""
        self._inside = inside
        self._state = self._opening
        self._close = UntilTag(CLOSE)
        self._trailing = ""

    def feed(self, text: str) -> list[Event]:
        return self._state(text) if text else []

    def finish(self) -> list[Event]:
        events = self._unopened(self._start) if self._state == self._opening else []
        if self._state == self._thinking:
            events += self._reasoning(self._close.finish(), last=True)
        return events

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        if self._state == self._opening:
            return self._inside or bool(self._start.strip())
        return self._state in (self._thinking_first, self._thinking)

    def _opening(self, text: str) -> list[Event]:
        """Waits until it is certain whether the answer begins with the opening tag."""
        self._start += text
        begun = self._start.lstrip()
        if OPEN.startswith(begun) and begun != OPEN:
            return []
        if begun.startswith(OPEN):
            self._state = self._thinking_first
            return self.feed(begun[len(OPEN) :])
        return self._unopened(self._start)

    def _unopened(self, text: str) -> list[Event]:
        self._state = self._thinking_first if self._inside else self._answering
        return self.feed(text)

    def _thinking_first(self, text: str) -> list[Event]:
        text = text.lstrip("\n")
        if not text:
            return []
        self._state = self._thinking
        return self._thinking(text)

    def _thinking(self, text: str) -> list[Event]:
        before, tag, behind = self._close.feed(text)
        events = self._reasoning(before, last=tag is not None)
        if tag is not None:
            self._state = self._answering_first
            events += self.feed(behind)
        return events

    def _reasoning(self, text: str, last: bool) -> list[Event]:
        """Newlines at the end are held back: before the closing tag they belong to it."""
        text = self._trailing + text
        shown = text.rstrip("\n")
        self._trailing = "" if last else text[len(shown) :]
        return [ReasoningEvent(shown)] if shown else []

    def _answering_first(self, text: str) -> list[Event]:
        text = text.lstrip("\n")
        if not text:
            return []
        self._state = self._answering
        return self._answering(text)

    def _answering(self, text: str) -> list[Event]:
        return [TextEvent(text)] if text else []
