"""Stop strings over a stream of text, whatever the chunks.

Contract: joined, the pieces returned are the text up to the stop string that completes first (the longest of those that
complete at the same character), with or without it; text that may begin a stop string is held back. The result depends
on the text only, never on how it was split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopText:
    """Text that may be shown, and the stop string that ended it."""

    text: str
    stop: str | None = None


class StopStrings:
    """A Knuth-Morris-Pratt matcher per stop string: a few steps per character, however long the strings."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = [stop for stop in dict.fromkeys(stops) if stop]
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._starts = frozenset(stop[0] for stop in self._stops)
        self._include = include
        self._held = ""

    def feed(self, text: str) -> StopText:
        """What may be shown after `text`. Once a stop was reported, nothing more is to be fed."""
        if not self._held and self._starts.isdisjoint(text):
            return StopText(text)
        buffer = self._held + text
        for index, char in enumerate(text, start=len(self._held) + 1):
            stop = self._step(char)
            if stop is not None:
                self._held = ""
                return StopText(buffer[: index if self._include else index - len(stop)], stop)
        keep = len(buffer) - max(self._matched)
        self._held = buffer[keep:]
        return StopText(buffer[:keep])

    def finish(self) -> str:
        """The text held back, once no more will come."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _step(self, char: str) -> str | None:
        """Advances every matcher by one character; the longest stop string that is now complete."""
        hit: str | None = None
        for number, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            matched = self._matched[number]
            while matched and stop[matched] != char:
                matched = borders[matched - 1]
            matched += stop[matched] == char
            if matched == len(stop):
                hit = stop if hit is None or len(stop) > len(hit) else hit
                matched = borders[-1]
            self._matched[number] = matched
        return hit


def _borders(stop: str) -> list[int]:
    """For every prefix, the length of its longest proper border."""
    borders, size = [0], 0
    for char in stop[1:]:
        while size and stop[size] != char:
            size = borders[size - 1]
        size += stop[size] == char
        borders.append(size)
    return borders
