"""Where steps are carried out, in order: in the caller's thread on CUDA, on a CPU when their result is asked for.

On CUDA a launch returns at once and the stream is the queue. On a CPU `run` queues, and whoever asks for a step's
result computes it, in the asking thread: every step before is then published, and no second thread wants the
interpreter between two operators of this one. Computing inside `run` would hold back every token by a whole step.
Ranks of a CPU group have a worker thread instead: a rank that waited to be asked would hold up the others' collectives.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
RING = 3
RING_INTS = 1 << 17


class Lane(Protocol):
    """Runs calls one after another; uploads arrays to the device."""

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]: ...

    def upload(self, array: NDArray[Any]) -> Tensor:
        """The array on the device, without waiting for the device."""
        ...

    def close(self) -> None: ...


class ThreadLane:
    """One worker thread for a rank on a CPU. `threads`: torch's own threads inside an operator (None: its default)."""

    def __init__(self, threads: int | None):
        self._pool = ThreadPoolExecutor(1, "tokenmill-step", self._start, (threads,))

    @staticmethod
    def _start(threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._pool.submit(_inference, call, *arguments)

    def upload(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array)

    def close(self) -> None:
        self._pool.shutdown()


class Later(Future[T]):
    """A call of an `AskedLane`: asking for its result carries it out, behind all that were queued before it."""

    def __init__(self, lane: AskedLane, call: Callable[..., T], arguments: tuple[Any, ...]):
        super().__init__()
        self._lane, self._call, self._arguments = lane, call, arguments

    def result(self, timeout: float | None = None) -> T:
        if not self.done():
            self._lane.carry_out(self)
        return super().result(timeout)

    def carry_out(self) -> None:
        try:
            self.set_result(_inference(self._call, *self._arguments))
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            self.set_exception(error)


class AskedLane:
    """The thread that asks for a result, on a CPU. `threads` as in `ThreadLane`. One thread at a time may ask."""

    def __init__(self, threads: int | None):
        self._threads = threads
        self._queue: deque[Later[Any]] = deque()
        self._set_in = 0

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        later = Later(self, call, arguments)
        self._queue.append(later)
        return later

    def carry_out(self, wanted: Later[Any]) -> None:
        # torch keeps its number of threads by thread.
        if self._threads is not None and self._set_in != threading.get_ident():
            torch.set_num_threads(self._threads)
            self._set_in = threading.get_ident()
        while not wanted.done():
            self._queue.popleft().carry_out()

    def upload(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array)

    def close(self) -> None:
        """What nobody asked for is not computed any more."""
        self._queue.clear()


class CudaLane:
    """The caller's thread and the device's current stream.

    int32 arrays go through a ring of pinned buffers, so that the copy is asynchronous; a buffer is written again only
    when the copy out of it, `RING` steps ago, has ended.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._ring = [torch.empty(RING_INTS, dtype=torch.int32, pin_memory=True) for _ in range(RING)]
        self._copied: list[torch.cuda.Event | None] = [None] * RING
        self._next = 0

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            with torch.cuda.device(self._device):
                future.set_result(_inference(call, *arguments))
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            future.set_exception(error)
        return future

    def upload(self, array: NDArray[Any]) -> Tensor:
        # Events are recorded on the current device's stream, which must be the one that copies.
        with torch.cuda.device(self._device):
            return self._upload(array)

    def _upload(self, array: NDArray[Any]) -> Tensor:
        if array.dtype != np.int32 or array.size > RING_INTS:
            return torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)
        at, self._next = self._next, (self._next + 1) % RING
        copied = self._copied[at]
        if copied is not None:
            copied.synchronize()
        pinned = self._ring[at][: array.size].view(array.shape)
        pinned.numpy()[...] = array
        there = pinned.to(self._device, non_blocking=True)
        copied = copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._copied[at] = copied
        return there

    def close(self) -> None:
        torch.cuda.synchronize(self._device)


def make_lane(device: torch.device, threads: int | None, ranks: int = 1) -> Lane:
    if device.type == "cuda":
        return CudaLane(device)
    return AskedLane(threads) if ranks == 1 else ThreadLane(threads)


@torch.inference_mode()
def _inference(call: Callable[..., T], *arguments: Any) -> T:
    return call(*arguments)
