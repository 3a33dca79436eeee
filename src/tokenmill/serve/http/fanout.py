"""Several answers side by side, as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from tokenmill.types import Chunk

# Per answer: enough to keep the engine's stream moving, little enough to hold a slow client's memory down.
_AHEAD_CHUNKS = 8


async def merge(streams: Sequence[AsyncGenerator[Chunk, None]]) -> AsyncGenerator[tuple[int, Chunk], None]:
    """(index, chunk) of all `streams` until each ended. The first failure ends all; closing this closes them."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for first in only:
                yield 0, first
        return
    queue: asyncio.Queue[tuple[int, Chunk | None]] = asyncio.Queue(_AHEAD_CHUNKS * len(streams))
    tasks = [asyncio.create_task(_feed(index, stream, queue)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            index, chunk = await queue.get()
            if chunk is not None:
                yield index, chunk
                continue
            running -= 1
            await tasks[index]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(
    index: int, stream: AsyncGenerator[Chunk, None], queue: asyncio.Queue[tuple[int, Chunk | None]]
) -> None:
    """Moves one stream into the queue; None marks its end, good or bad, and the task then tells which."""
    try:
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                await queue.put((index, chunk))
    finally:
        # A full queue means that its reader is gone or busy; when cancelled nobody waits for the mark.
        if not _being_cancelled():
            await queue.put((index, None))


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
