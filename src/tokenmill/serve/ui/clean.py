"""Strips what a model's text could do to a terminal: escape sequences, control characters, bidirectional overrides.

`Cleaner.feed` takes pieces cut anywhere; a sequence may begin in one piece and end in another. What it keeps of a
sequence is nothing; an unfinished one swallows at most MAX_SEQUENCE characters, so that text cannot hide behind it.
"""

from __future__ import annotations

from enum import Enum

MAX_SEQUENCE = 256
ESC, BEL, STRING_END = "\x1b", "\x07", "\x9c"
KEPT_CONTROLS = "\n\t"
# Embeddings, overrides and isolates reorder what is shown after them.
BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
STRINGS = "]PX^_"
C1_STRINGS = "\x9d\x90\x98\x9e\x9f"


class _State(Enum):
    TEXT = 0
    ESCAPE = 1
    CSI = 2
    STRING = 3
    STRING_ESCAPE = 4


class Cleaner:
    """`feed(text)` gives what may be printed of it."""

    def __init__(self) -> None:
        self._state = _State.TEXT
        self._swallowed = 0

    def feed(self, text: str) -> str:
        return "".join(c for c in text if self._keeps(c))

    def _keeps(self, c: str) -> bool:
        if self._state is _State.TEXT:
            return self._in_text(c)
        self._swallowed += 1
        self._state = _State.TEXT if self._swallowed > MAX_SEQUENCE else self._in_sequence(c)
        return False

    def _in_text(self, c: str) -> bool:
        if c == ESC or c == "\x9b" or c in C1_STRINGS:
            self._swallowed = 0
            self._state = _State.ESCAPE if c == ESC else _State.CSI if c == "\x9b" else _State.STRING
            return False
        return c in KEPT_CONTROLS or not (c < " " or "\x7f" <= c <= "\x9f" or c in BIDI)

    def _in_sequence(self, c: str) -> _State:
        """The state after `c`, which belongs to a sequence."""
        if self._state is _State.ESCAPE:
            if c in "[" + STRINGS:
                return _State.CSI if c == "[" else _State.STRING
            # Intermediate bytes (such as the charset's) go on; anything else ends a short sequence.
            return _State.ESCAPE if " " <= c <= "/" else _State.TEXT
        if self._state is _State.CSI:
            return _State.TEXT if "@" <= c <= "~" or c == "\n" else _State.CSI
        if self._state is _State.STRING_ESCAPE and c == "\\":
            return _State.TEXT
        if c in (BEL, STRING_END):
            return _State.TEXT
        return _State.STRING_ESCAPE if c == ESC else _State.STRING


def clean(text: str) -> str:
    """A whole text, cleaned."""
    return Cleaner().feed(text)
