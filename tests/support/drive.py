"""Drives a Runner by hand, one plan at a time: what a scheduler would send, said in a line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tokenmill.engine.contract import NO_I32, Row, Runner, SlotInit, StepPlan, StepResult
from tokenmill.types import Sampling, Want

GREEDY = Sampling(temperature=0.0)


def init(slot: int, prompt: list[int], sampling: Sampling = GREEDY, seed: int = 0, **more: object) -> SlotInit:
    history = np.array(prompt, np.int32) if sampling.needs_history else None
    start = SlotInit(slot, epoch=slot + 100, sampling=sampling, seed=seed, prompt_tokens=len(prompt), history=history)
    return replace(start, **more)


def blocks(slot: int, ids: list[int], first: int = 0, group: int = 0) -> list[list[int]]:
    return [[group, slot, first + i, block] for i, block in enumerate(ids)]


def ints(values: list) -> np.ndarray:
    return np.array(values, np.int32)


def chunk(
    slot: int, tokens: list[int], start: int = 0, want: Want = Want.TOKEN, targets: list[int] | None = None
) -> Row:
    return Row(slot, len(tokens), ints(tokens), start, want, None if targets is None else ints(targets))


class Driver:
    """Counts steps and remembers each slot's blocks; blocks are handed out in an order unlike that of positions."""

    def __init__(self, runner: Runner):
        self.runner, self.steps = runner, 0
        group = runner.capacity().groups[0]
        self.size = group.block_tokens
        self.free = list(np.random.default_rng(0).permutation(group.num_blocks))

    def plan(
        self, decode: list[int] = (), rows: list[Row] = (), inits: list[SlotInit] = (), **more: object
    ) -> StepPlan:
        self.steps += 1
        return StepPlan(self.steps, ints(list(decode)) if len(decode) else NO_I32, list(rows), list(inits), **more)

    def run(self, *args: object, **more: object) -> StepResult:
        return self.runner.run(self.plan(*args, **more)).result()

    def take(self, slot: int, tokens: int) -> np.ndarray:
        """new_blocks that let a fresh slot hold `tokens`."""
        count = -(-tokens // self.size)
        mine, self.free = self.free[:count], self.free[count:]
        return ints(blocks(slot, mine))

    def generate(self, slot: int, prompt: list[int], count: int, chunks: int = 1000, **more: object) -> list[int]:
        """One sequence alone: its prompt in chunks, then decode steps; the slot is released at the end."""
        out: list[int] = []
        for start in range(0, len(prompt), chunks):
            part = prompt[start : start + chunks]
            last = start + len(part) == len(prompt)
            first = {"inits": [init(slot, prompt, **more)], "new_blocks": self.take(slot, len(prompt) + count)}
            row = chunk(slot, part, start, Want.TOKEN if last else Want.NONE)
            result = self.run(rows=[row], **(first if start == 0 else {}))
        out.append(int(result.tokens[0, 0]))
        while len(out) < count:
            out.append(int(self.run(decode=[slot]).tokens[0, 0]))
        self.run(released_slots=ints([slot]))
        return out
