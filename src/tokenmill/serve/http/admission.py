"""Who may run now, who waits, and who is sent away.

In arrival order; counted in choices, before anything is rendered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from tokenmill.errors import RequestError


@dataclass(slots=True, eq=False)
class _Waiter:
    weight: int
    admitted: asyncio.Future[None]


class Admission:
    """`running_limit` places, and a queue of `max_queue` more.

    `holds` False admits everybody at once (the engine has its own queue) and only counts: the limit then says how many
    the engine runs side by side. A request alone is always admitted, however many places it takes.
    """

    def __init__(self, running_limit: int, max_queue: int, holds: bool) -> None:
        self.running_limit = running_limit
        self.max_queue = max_queue
        self.holds = holds
        self.running = 0
        self._waiters: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """Places waited for: in our queue, or beyond what the engine runs."""
        return self._queued if self.holds else max(0, self.running - self.running_limit)

    @property
    def full(self) -> bool:
        """True where a request for one place would be refused."""
        return not self._fits(1)

    async def acquire(self, weight: int, timeout_s: float | None = None) -> int:
        """Takes `weight` places, after waiting for them, and says how many to give back.

        Raises RequestError 429 at once where the queue is full, 504 where `timeout_s` pass first.
        """
        if self.holds:
            weight = min(weight, self.running_limit)
        if not self._fits(weight):
            raise RequestError(f"{self.waiting} requests are waiting already; try again later", 429, code="queue_full")
        if not self.holds or (not self._waiters and self.running + weight <= self.running_limit):
            self.running += weight
            return weight
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait(weight)
        except TimeoutError:
            raise RequestError(f"no place came free within {timeout_s:g} s", 504, code="timeout") from None
        return weight

    def release(self, places: int) -> None:
        self.running -= places
        self._admit()

    def _fits(self, weight: int) -> bool:
        if not self._waiters and self.running == 0:
            return True
        return self.running + self._queued + weight <= self.running_limit + self.max_queue

    @property
    def _queued(self) -> int:
        return sum(waiter.weight for waiter in self._waiters)

    async def _wait(self, weight: int) -> None:
        waiter = _Waiter(weight, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            # Admitted and cancelled in one turn of the loop: the places must go back.
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self.running -= weight
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiters and self.running + self._waiters[0].weight <= self.running_limit:
            waiter = self._waiters.popleft()
            if waiter.admitted.cancelled():
                continue
            self.running += waiter.weight
            waiter.admitted.set_result(None)
