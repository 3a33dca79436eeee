"""What parsers say about an answer's text, and what a parser is.

A parser is fed text in any pieces and says what it is: words for the user, reasoning, tool calls. Joined, the events do
not depend on the split; text that may begin a tag is held back until it is certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TextEvent:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningEvent:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEvent:
    """A whole call; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


Event = TextEvent | ReasoningEvent | ToolCallEvent


class Parser(Protocol):
    """State of one answer. Nothing is fed after `finish`."""

    def feed(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class ReasoningReader(Parser, Protocol):
    """A parser that knows whether the next words are reasoning, which is how reasoning tokens are counted."""

    @property
    def thinking(self) -> bool: ...


def joined(events: Sequence[Event]) -> list[Event]:
    """The same events with neighbours of one kind joined and empty ones left out."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, ToolCallEvent):
            merged.append(event)
        elif not event.text:
            continue
        elif isinstance(event, TextEvent) and isinstance(last, TextEvent):
            merged[-1] = TextEvent(last.text + event.text)
        elif isinstance(event, ReasoningEvent) and isinstance(last, ReasoningEvent):
            merged[-1] = ReasoningEvent(last.text + event.text)
        else:
            merged.append(event)
    return merged
