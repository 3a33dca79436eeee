"""What a step costs the host: plan and commit of steady decoding, with a runner that does nothing.

Steps are planned and committed in the order of an overlapping loop (the next is planned before the last is committed).
Prompts differ in length, so that in every step the same share of rows fills a block, takes a new one and has the full
one indexed, as in a mixed batch; two stop ids are looked for and never drawn. Garbage is collected beforehand, as the
engine's own process does it. Building requests, the first steps and the runner itself are not counted.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from tokenmill.config import SchedulerConfig
from tokenmill.engine.contract import Capacity, KVGroup, StepPlan, StepResult
from tokenmill.engine.scheduler import Scheduler
from tokenmill.types import Request, Stop

BLOCK_TOKENS = 64
PROMPT_TOKENS = 512
WARM_STEPS = 50
VOCAB = 32000
DRAWN = 7
STOPS = (2, 3)


@dataclass(frozen=True, slots=True)
class HostFigures:
    """Microseconds of one step."""

    rows: int
    plan_p50_us: float
    commit_p50_us: float
    both_p50_us: float
    both_p99_us: float

    def __str__(self) -> str:
        return (
            f"{self.rows:4d} rows: plan {self.plan_p50_us:6.1f} us + commit {self.commit_p50_us:6.1f} us; "
            f"both p50 {self.both_p50_us:6.1f} us, p99 {self.both_p99_us:6.1f} us"
        )


class NullRunner:
    """Draws the same token for every row. Knows slots only."""

    def __init__(self, rows: int) -> None:
        self.epochs = np.zeros(rows, np.int32)
        self.tokens = np.full((rows, 1), DRAWN, np.int32)
        self.counts = np.ones(rows, np.int32)

    def run(self, plan: StepPlan) -> StepResult:
        for init in plan.new_slots:
            self.epochs[init.slot] = init.epoch
        drawing = [row.slot for row in plan.rows if row.want]
        slots = np.concatenate([plan.decode_slots, np.asarray(drawing, np.int32)]) if drawing else plan.decode_slots
        return StepResult(slots, self.epochs[slots], self.tokens[: len(slots)], self.counts[: len(slots)])


def make_scheduler(rows: int, steps: int) -> Scheduler:
    """A full house: `rows` requests that decode for longer than will be measured."""
    most = PROMPT_TOKENS + 2 * BLOCK_TOKENS + steps + WARM_STEPS + rows
    blocks = rows * (most // BLOCK_TOKENS + 2)
    group = KVGroup("all", 32, BLOCK_TOKENS, 1, blocks)
    capacity = Capacity((group,), rows, max(8192, rows), most, VOCAB)
    scheduler = Scheduler(capacity, SchedulerConfig(), prefix_caching=True, draw_seed=lambda: 1)
    for number in range(rows):
        prompt = tuple((number * 31 + i) % VOCAB for i in range(PROMPT_TOKENS + number % BLOCK_TOKENS))
        scheduler.submit(Request(f"r{number}", prompt, stop=Stop(most, token_ids=STOPS)), number)
    return scheduler


def measure(rows: int, steps: int) -> HostFigures:
    """Plans and commits `steps` steady steps of `rows` rows."""
    scheduler, runner = make_scheduler(rows, steps), NullRunner(rows)
    ahead = runner.run(scheduler.plan())
    while len((plan := scheduler.plan()).decode_slots) < rows:
        result = runner.run(plan)
        scheduler.commit(ahead)
        ahead = result
    ahead, behind = runner.run(plan), ahead
    scheduler.commit(behind)
    timed = np.empty((steps + WARM_STEPS, 2))
    gc.collect()
    gc.freeze()
    try:
        for step in range(steps + WARM_STEPS):
            ahead = _step(scheduler, runner, ahead, timed[step])
    finally:
        gc.unfreeze()
    us = timed[WARM_STEPS:] * 1e6
    both = us.sum(1)
    return HostFigures(rows, *np.median(us, 0).tolist(), *np.percentile(both, [50, 99]).tolist())


def _step(scheduler: Scheduler, runner: NullRunner, ahead: StepResult, times: np.ndarray) -> StepResult:
    begun = perf_counter()
    plan = scheduler.plan()
    planned = perf_counter()
    result = runner.run(plan)
    landed = perf_counter()
    scheduler.commit(ahead)
    times[:] = planned - begun, perf_counter() - landed
    return result
