"""An event loop in a thread of its own, for callers that have none: call, iterate, close. Thread-safe."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from tokenmill.errors import EngineDeadError

T = TypeVar("T")
JOIN_S = 10.0


def before_exit(call: Callable[[], Any]) -> None:
    """Calls `call` when the program ends, while thread pools still take work.

    `atexit` comes too late: by then every pool refuses work, so that an engine could neither finish its step nor be
    closed. This is the hook the pools themselves hang on, in every Python since 3.9; it runs the latest first.
    """
    threading._register_atexit(call)  # type: ignore[attr-defined]


class LoopThread:
    """Runs until `close`. The thread is a daemon: a program that forgot to close still ends."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, run over there. Ctrl-C here cancels it there."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items as they come. Leaving the iterator early closes `items`."""
        inbox: queue.SimpleQueue[_Item[T]] = queue.SimpleQueue()
        pump = self.submit(_pump(items, inbox))
        pump.add_done_callback(lambda _: inbox.put(_cut_off()))
        try:
            while (item := inbox.get()).more:
                yield item.value  # type: ignore[misc]
        finally:
            pump.cancel()
        if item.error is not None:
            raise item.error

    async def aiterate(self, items: AsyncIterator[T]) -> AsyncIterator[T]:
        """The same for a caller on another event loop, which is not held up."""
        here = asyncio.get_running_loop()
        inbox: asyncio.Queue[_Item[T]] = asyncio.Queue()
        across = _Across(here, inbox)
        pump = self.submit(_pump(items, across))
        pump.add_done_callback(lambda _: across.put(_cut_off()))
        try:
            while (item := await inbox.get()).more:
                yield item.value  # type: ignore[misc]
        finally:
            pump.cancel()
        if item.error is not None:
            raise item.error

    @property
    def is_here(self) -> bool:
        """Whether the caller is on this loop's own thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancels what still runs and ends the thread."""
        if self.loop.is_closed():
            return
        if self.is_here:
            self.loop.stop()
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


class _Item(Generic[T]):
    """An item (`more`), or the end with what went wrong."""

    def __init__(self, more: bool, value: T | None = None, error: BaseException | None = None) -> None:
        self.more, self.value, self.error = more, value, error


def _cut_off() -> _Item[Any]:
    """Stands behind whatever a pump has put: who comes to it waits for a pump that the loop's end has cancelled."""
    return _Item(False, error=EngineDeadError("it was closed before the answer ended; make another"))


class _Across(Generic[T]):
    """Puts into a queue of another loop; a loop that is gone wants nothing more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[_Item[T]]) -> None:
        self._loop, self._inbox = loop, inbox

    def put(self, item: _Item[T]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)


async def _pump(items: AsyncIterator[T], inbox: queue.SimpleQueue[_Item[T]] | _Across[T]) -> None:
    try:
        async for item in items:
            inbox.put(_Item(True, item))
        inbox.put(_Item(False))
    except Exception as error:  # noqa: BLE001 - carried to the caller's thread, which raises it
        inbox.put(_Item(False, error=error))
    finally:
        # A cancelled pump must leave nothing running: closing the iterator aborts its request.
        aclose = getattr(items, "aclose", None)
        if aclose is not None:
            await aclose()
