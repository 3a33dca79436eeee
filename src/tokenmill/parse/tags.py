"""Finding one tag in a stream: what parsers are made of."""

from __future__ import annotations

from tokenmill.parse.stops import StopStrings


class UntilTag:
    """Text up to the first of some tags, with what may begin a tag held back.

    `feed` gives (text before the tag, tag or None, text behind the tag).
    """

    def __init__(self, *tags: str) -> None:
        self._machine = StopStrings(tags)
        self._fed = 0
        self._shown = 0

    def feed(self, text: str) -> tuple[str, str | None, str]:
        found = self._machine.feed(text)
        self._fed += len(text)
        self._shown += len(found.text)
        if found.stop is None:
            return found.text, None, ""
        behind = self._fed - self._shown - len(found.stop)
        return found.text, found.stop, text[len(text) - behind :] if behind else ""

    def finish(self) -> str:
        return self._machine.finish()
