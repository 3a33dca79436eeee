"""What this GPU reaches at most, measured now, and how anything on it is timed: in a captured graph, caches cold.

Every kernel's time is printed as a share of these, never of a datasheet.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

# Sets of weights that together are three times an H200's second-level cache of 60 MB.
COLD_BYTES = 180 << 20
# Larger than any cache of a host.
HOST_BYTES, HOST_CALLS = 256 << 20, 7
REPLAYS, LEAST_CALLS, WARM_UPS = 7, 20, 2

Call = Callable[[], object]


def graph_us(calls: Sequence[Call], replays: int = REPLAYS) -> float:
    """Microseconds of one of `calls`, each on data of its own: the median of replays of a graph of them all."""
    many = list(calls) * -(-LEAST_CALLS // len(calls))
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in list(calls)[:WARM_UPS]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in many]
    del kept
    times = [_replay_ms(graph) for _ in range(replays + 1)][1:]
    return statistics.median(times) * 1000 / len(many)


def _replay_ms(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def copies(nbytes: int) -> int:
    """How many sets of `nbytes` leave nothing in the cache from one round to the next."""
    return max(1, min(32, -(-COLD_BYTES // max(nbytes, 1))))


@dataclass(frozen=True, slots=True)
class Ceilings:
    """bytes/s of a copy (read and written counted) and of reading alone, flop/s of a product of random bf16."""

    copy: float
    read: float
    flops: float

    def floor_us(self, nbytes: int, flops: int) -> float:
        """The least a kernel can take that moves so much and computes so much."""
        return max(nbytes / max(self.copy, self.read), flops / self.flops) * 1e6


def measure() -> Ceilings:
    size = 2 << 30
    copy_us, read_us = _memory_us(size)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    gemm_us = graph_us([lambda: a @ b], replays=3)
    return Ceilings(2 * size / copy_us * 1e6, size / read_us * 1e6, 2 * 8192**3 / gemm_us * 1e6)


def memory_rates() -> tuple[float, float]:
    """bytes/s of a copy and of reading, of the GPU's memory, or of this host's with the threads torch has."""
    if torch.cuda.is_available():
        size = 2 << 30
        copy_us, read_us = _memory_us(size)
    else:
        size = HOST_BYTES
        source = torch.rand(size // 4)
        target = torch.empty_like(source)
        copy_us, read_us = _host_us(lambda: target.copy_(source)), _host_us(source.sum)
    return 2 * size / copy_us * 1e6, size / read_us * 1e6


def _host_us(call: Call) -> float:
    """The fastest of a few: whatever else runs on a host only slows it."""
    times = []
    for _ in range(HOST_CALLS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times) * 1e6


def memory_rates_apart() -> tuple[float, float]:
    """`memory_rates` in a process that is gone afterwards: an engine plans with the memory that is left."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(memory_rates).result()


def _memory_us(size: int) -> tuple[float, float]:
    """Of copying `size` bytes, and of reading them. Random: zeros may be faster."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    target, words = torch.empty_like(source), source.view(torch.int64)
    return graph_us([lambda: target.copy_(source)]), graph_us([lambda: words.max()])
