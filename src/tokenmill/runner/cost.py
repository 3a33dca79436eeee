"""What a step costs, measured at start by running a few: the numbers of `StepCost`, for an inter-token target.

Four plans are timed: one row of one token, many rows of one token, a chunk at the start of a sequence, and the same
chunk deep in a context (whose keys were never written: zeros cost what others cost). Differences give the four terms; a
term that the noise makes negative is 0. Every rank runs the same plans, so collectives meet.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count
from statistics import median

import numpy as np

from tokenmill.engine.contract import I32, Row, Runner, SlotInit, StepCost, StepPlan
from tokenmill.types import Sampling, Want

RUNS = 3
MOST_ROWS, MOST_CHUNK, MOST_CONTEXT = 16, 512, 4096
GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Sizes:
    """rows of the wide plan, tokens of the chunk, tokens before the deep one."""

    rows: int
    chunk: int
    context: int


def measure_cost(runner: Runner) -> StepCost:
    """Takes every block and seat for a moment and gives them back."""
    sizes = _sizes(runner)
    steps = count()
    one, wide = _time(runner, steps, 1, 1, 0), _time(runner, steps, sizes.rows, 1, 0)
    chunk, deep = _time(runner, steps, 1, sizes.chunk, 0), _time(runner, steps, 1, sizes.chunk, sizes.context)
    token_us = _per(chunk - one, sizes.chunk - 1)
    row_us = max(_per(wide - one, sizes.rows - 1) - token_us, 0.0)
    return StepCost(
        step_us=max(one - row_us - token_us, 0.0),
        row_us=row_us,
        token_us=token_us,
        token_kcontext_us=_per(deep - chunk, sizes.chunk * sizes.context / 1000),
    )


def _sizes(runner: Runner) -> Sizes:
    capacity = runner.capacity()
    group = capacity.groups[0]
    room = min(capacity.max_model_tokens, group.num_blocks * group.block_tokens)
    chunk = max(min(MOST_CHUNK, capacity.max_step_tokens, room // 2), 1)
    rows = min(MOST_ROWS, capacity.max_rows, capacity.max_step_tokens, *(g.num_blocks for g in capacity.groups))
    return Sizes(rows, chunk, max(min(MOST_CONTEXT, room - chunk), 0))


def _per(us: float, count: float) -> float:
    return max(us / count, 0.0) if count > 0 else 0.0


def _time(runner: Runner, steps: count[int], rows: int, tokens: int, start: int) -> float:
    """Microseconds of a step of `rows` rows of `tokens` tokens at `start`; the first run warms up."""
    slots: I32 = np.arange(rows, dtype=np.int32)
    seats = [SlotInit(int(slot), 0, GREEDY, 0, start + tokens) for slot in slots]
    runner.run(StepPlan(next(steps), new_slots=seats, new_blocks=own_blocks(runner, rows, start + tokens))).result()
    ids: I32 = np.zeros(tokens, np.int32)
    taken = []
    for _ in range(RUNS + 1):
        plan = StepPlan(next(steps), rows=[Row(int(slot), tokens, ids, start, Want.TOKEN) for slot in slots])
        begun = time.perf_counter()
        runner.run(plan).result()
        taken.append((time.perf_counter() - begun) * 1e6)
    runner.run(StepPlan(next(steps), released_slots=slots)).result()
    return median(taken[1:])


def own_blocks(runner: Runner, rows: int, tokens: int) -> I32:
    """new_blocks that give each row its own blocks, in every group."""
    parts = []
    for number, group in enumerate(runner.capacity().groups):
        each = -(-tokens // group.block_tokens)
        slot, index = (grid.ravel() for grid in np.meshgrid(np.arange(rows), np.arange(each), indexing="ij"))
        parts.append(np.stack([np.full_like(slot, number), slot, index, slot * each + index], 1))
    return np.concatenate(parts).astype(np.int32)
