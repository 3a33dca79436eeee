"""Pictures of a served model's requests: fetched, decoded and cut off the event loop, held while a request needs them.

`take` gives the messages with text in place of their pictures, and the pictures; the codec renders and tokenizes the
former and `place` makes room for the latter. Whoever took pictures gives them back with `release`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b

from tokenmill.types import MediaRef, Message
from tokenmill.vision.facts import ImageFacts
from tokenmill.vision.fetch import Fetched, MediaPolicy, fetch
from tokenmill.vision.pool import WorkerPool
from tokenmill.vision.prompt import ImagePart, Placed, expand, take_images
from tokenmill.vision.store import MediaStore

# Fetching waits for other hosts; decoding waits for a worker.
THREADS = 8


class ImageDesk:
    """One per served model. Processes and threads start with the first picture."""

    def __init__(self, facts: ImageFacts, policy: MediaPolicy) -> None:
        self.facts, self.policy = facts, policy
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenmill-image")
        self._workers = WorkerPool()
        self._store = MediaStore()

    async def take(self, messages: Sequence[Message]) -> tuple[list[Message], list[Placed]]:
        """Raises RequestError (400: what was sent; 429: no room) and then holds nothing."""
        plain, parts = take_images(messages, self.facts.words)
        works = [self._threads.submit(self._prepare, part) for part in parts]
        try:
            return plain, list(await asyncio.gather(*map(asyncio.wrap_future, works)))
        except BaseException:
            for work in works:
                work.cancel()
                work.add_done_callback(self._give_back)
            raise

    def place(self, ids: Sequence[int], images: Sequence[Placed]) -> tuple[tuple[int, ...], tuple[MediaRef, ...]]:
        """Ids with room for the pictures. Raises RequestError where text holds the placeholder."""
        whole, media = expand(ids, self.facts.words, images)
        return whole, tuple(media)

    def release(self, digests: Sequence[str]) -> None:
        if digests:
            self._store.release(tuple(digests))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._workers.close()
        self._store.close()

    def _prepare(self, part: ImagePart) -> Placed:
        found = Fetched(part.source) if isinstance(part.source, bytes) else fetch(part.source, self.policy)
        cutting = part.cutting(self.facts.cutting)
        key = blake2b(found.data + f"|{found.said}|{cutting}".encode(), digest_size=16).digest()
        cut = self._store.find(key)
        if cut is None:
            cut = self._store.adopt(key, self._workers.prepare(found.data, found.said, cutting, self._store.new_path()))
        return Placed(cut.digest, cut.path, self.facts.num_tokens(cut), cut.grid)

    def _give_back(self, work: Future[Placed]) -> None:
        if not work.cancelled() and work.exception() is None:
            self.release([work.result().digest])
