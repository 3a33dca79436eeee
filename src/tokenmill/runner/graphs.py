"""One captured CUDA graph per decode bucket: a steady step is one replay, whatever its lengths.

A bucket is (rows, context): every size that depends on lengths is bounded by the bucket, real lengths are device data.
Unused rows stand on the dummy seat and write nowhere. Buckets whose reference attention would gather more than
`GATHER_BYTES` are not captured; such steps run eager with their own bounds. Captured largest first, from one memory
pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, *range(96, 257, 32))
LEAST_CONTEXT = 1024
CONTEXT_STEP = 4
GATHER_BYTES = 1 << 30
WARM_UPS = 2

# (slots int64 [R], max_context) -> (fp32 logits [R, V], totals int32 [R]): one decode step, without host reads.
DecodeStep = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def buckets(rows: tuple[int, ...], max_context: int, gather_token_bytes: int) -> list[tuple[int, int]]:
    """(rows, context) pairs to capture, largest first. `gather_token_bytes`: of one token in reference attention.

    0: attention reads what is there and nothing else, so the longest context serves all and starts stay short.
    """
    contexts = list(_contexts(max_context)) if gather_token_bytes else [max_context]
    pairs = [(r, c) for c in contexts for r in rows if r * c * gather_token_bytes <= GATHER_BYTES]
    return sorted(pairs, reverse=True)


def _contexts(max_context: int) -> Iterator[int]:
    context = LEAST_CONTEXT
    while context < max_context:
        yield context
        context *= CONTEXT_STEP
    yield max_context


def choose(keys: list[tuple[int, int]], rows: int, context: int) -> tuple[int, int] | None:
    """The least bucket that holds the step; None: it runs eager."""
    return min((key for key in keys if key[0] >= rows and key[1] >= context), default=None)


@dataclass(slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    slots_R: Tensor
    logits_RV: Tensor
    totals_R: Tensor


class DecodeGraphs:
    """Captured decode steps on one device. `dummy`: the seat of padding rows."""

    def __init__(self, step: DecodeStep, keys: list[tuple[int, int]], dummy: int, device: torch.device):
        self._step, self._dummy, self._device = step, dummy, device
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: libraries keep a workspace for every stream they have met.
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._captured = {key: self._capture(*key) for key in keys}
        self.keys = list(self._captured)

    def run(self, slots_R: Tensor, max_context: int) -> tuple[Tensor, Tensor] | None:
        """Logits [R, V] and totals [R] of a step, valid until the next run; None where no bucket holds it."""
        key = choose(self.keys, len(slots_R), max_context)
        if key is None:
            return None
        captured, count = self._captured[key], len(slots_R)
        captured.slots_R[:count].copy_(slots_R)
        captured.slots_R[count:].fill_(self._dummy)
        captured.graph.replay()
        return captured.logits_RV[:count], captured.totals_R[:count]

    def _capture(self, rows: int, context: int) -> _Captured:
        slots_R = torch.full((rows,), self._dummy, dtype=torch.int64, device=self._device)
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            for _ in range(WARM_UPS):
                self._step(slots_R, context)
        torch.cuda.current_stream(self._device).wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits_RV, totals_R = self._step(slots_R, context)
        return _Captured(graph, slots_R, logits_RV, totals_R)
