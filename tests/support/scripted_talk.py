"""A Talk that says what it was told to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tokenmill.serve.ui.conversation import Message, Piece, Settings


class ScriptedTalk:
    """Each answer is a list of pieces; `None` among them waits for ever, as a slow model would."""

    name = "scripted"

    def __init__(self, *answers: list[str | None]):
        self._answers = list(answers)
        self.asked: list[tuple[tuple[Message, ...], Settings]] = []
        self.stopped = 0
        self.waiting = asyncio.Event()

    async def answer(self, messages: tuple[Message, ...], settings: Settings) -> AsyncIterator[Piece]:
        self.asked.append((messages, settings))
        try:
            for n, text in enumerate(self._answers.pop(0), 1):
                if text is None:
                    self.waiting.set()
                    await asyncio.Event().wait()
                yield Piece(text or "", None, n)
            yield Piece("", "stop", 0)
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise

    async def close(self) -> None:
        return
