"""Harmony's channels (GPT-OSS): analysis is reasoning, final and words in commentary are the answer, a message to a
function is a call.

A message is header `<|message|>` body, ended by `<|end|>`, `<|call|>`, `<|return|>` or the next `<|start|>`; the first
header goes on where the prompt's `<|start|>assistant` ends. A prompt that ends inside an answer is continued by plain
words. What goes to a function but is no JSON object stays text, header and all.
"""

from __future__ import annotations

import re
from typing import Any

from tokenmill.parse.calls import from_json
from tokenmill.parse.events import Event, ReasoningEvent, TextEvent, ToolCallEvent
from tokenmill.parse.tags import UntilTag

START, MESSAGE, CHANNEL, CONSTRAIN = "<|start|>", "<|message|>", "<|channel|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
TAGS = (START, MESSAGE, CHANNEL, CONSTRAIN, *ENDS)
# A vocabulary that holds these speaks so.
SIGNS = (CHANNEL, CONSTRAIN, "<|call|>")
FUNCTION, RECIPIENT = "functions.", "to="
_CHANNEL, _TO = re.compile(r"<\|channel\|>\s*(\w+)"), re.compile(r"to=([^\s<]+)")


def starts_inside(options: dict[str, Any]) -> bool:
    """A template never opens a channel."""
    return False


class ReasoningParser:
    """Calls are told when they are whole; the other bodies as they come."""

    def __init__(self, inside: bool = False) -> None:
        self._tags = UntilTag(*TAGS)
        self._header: str | None = ""
        self._body = ""
        self._channel, self._function, self._spoken = "", "", ""
        # Whether words may come without a header: at the start, and behind a message.
        self._bare = True

    @property
    def thinking(self) -> bool:
        return self._header is None and self._channel == "analysis" and not self._function

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        while text:
            before, tag, text = self._tags.feed(text)
            events += self._words(before) + (self._tag(tag) if tag is not None else [])
        return events

    def finish(self) -> list[Event]:
        events = self._words(self._tags.finish())
        if self._header is not None:
            # Half a header holds no words; what never was one does.
            return [*events, TextEvent(self._header)] if self._bare and self._header else events
        return events + self._close()

    def _words(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._header is not None:
            self._header += text
            known = self._header.lstrip()
            if not self._bare or RECIPIENT.startswith(known[: len(RECIPIENT)]):
                return []
            text, self._header, self._channel, self._function = self._header, None, "final", ""
        if self._function:
            self._body += text
            return []
        return [ReasoningEvent(text) if self._channel == "analysis" else TextEvent(text)]

    def _tag(self, tag: str) -> list[Event]:
        self._tags = UntilTag(*TAGS)
        if tag == MESSAGE:
            if self._header is not None:
                self._open(self._header)
            return []
        closed = self._close() if self._header is None else []
        self._bare = tag in ENDS
        if tag == START or tag in ENDS or self._header is None:
            self._header = ""
        self._header += tag if tag in (CHANNEL, CONSTRAIN) else ""
        return closed

    def _open(self, header: str) -> None:
        channel, to = _CHANNEL.search(header), _TO.search(header)
        recipient = to[1] if to else ""
        self._channel = channel[1] if channel else "final"
        self._function = recipient.removeprefix(FUNCTION) if recipient.startswith(FUNCTION) else ""
        # What stands for the header, should the body be no call.
        self._header, self._body, self._spoken = None, "", header + MESSAGE

    def _close(self) -> list[Event]:
        name, body, self._function, self._body = self._function, self._body, "", ""
        if not name:
            return []
        if isinstance(from_json(body), dict):
            return [ToolCallEvent(name, body.strip())]
        return [TextEvent(self._spoken + body)]
