"""A few steps before the first request, on a GPU: ready then means ready.

Kernels are compiled and loaded at their first call, libraries make their workspaces there, and a step of the most
tokens is what takes the most memory: what a start does not meet, a request would. Every way a step can go is gone
once: chunks of several lengths, a chunk beside a decode row, a steady step, every stage of sampling, a grammar's mask.

Errors: CapacityError where a step of the most tokens does not fit beside the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch

from tokenmill.engine.contract import I32, Row, Runner, SlotInit, StepPlan
from tokenmill.errors import CapacityError
from tokenmill.runner.cost import own_blocks
from tokenmill.types import Sampling, Want

# Beside the most there may be: lengths that backends serve in different ways.
LENGTHS = (300, 100, 40, 8)
BESIDE = 2
EVERYTHING = Sampling(0.9, 40, 0.9, 0.01, 1.1, 0.1, 0.1)


def rehearse(runner: Runner) -> None:
    """Takes every block and seat for a moment and gives them back. On every rank alike."""
    capacity, steps = runner.capacity(), count()
    try:
        for tokens in lengths(runner):
            _alone(runner, steps, tokens)
        if _two_fit(runner):
            _together(runner, steps)
    except torch.OutOfMemoryError as error:
        raise CapacityError(
            f"a step of {capacity.max_step_tokens} tokens does not fit beside the KV cache: use a smaller "
            "--cache-max-entry-count or --max-prefill-token-num"
        ) from error


def lengths(runner: Runner) -> list[int]:
    """Of chunks, the longest first."""
    most = max(min(runner.capacity().max_step_tokens, _room(runner) - 1), 1)
    return [most, *(tokens for tokens in LENGTHS if tokens < most)]


def _room(runner: Runner) -> int:
    """Tokens that one sequence may hold."""
    capacity = runner.capacity()
    return min(capacity.max_model_tokens, *(group.num_blocks * group.block_tokens for group in capacity.groups))


def _two_fit(runner: Runner) -> bool:
    capacity = runner.capacity()
    blocks = [group.num_blocks // -(-BESIDE // group.block_tokens) for group in capacity.groups]
    return min(capacity.max_rows, *blocks) >= 2 and min(capacity.max_step_tokens, _room(runner)) > BESIDE


def _seat(slot: int, tokens: int) -> SlotInit:
    return SlotInit(slot, 0, EVERYTHING, 0, tokens, history=np.zeros(tokens, np.int32))


def _row(slot: int, tokens: int) -> Row:
    return Row(slot, tokens, np.zeros(tokens, np.int32), 0, Want.TOKEN)


def _alone(runner: Runner, steps: Iterator[int], tokens: int) -> None:
    """A chunk, a step behind it where there is room, and out."""
    slots: I32 = np.zeros(1, np.int32)
    blocks = own_blocks(runner, 1, min(tokens + 1, _room(runner)))
    plan = StepPlan(next(steps), rows=[_row(0, tokens)], new_slots=[_seat(0, tokens)], new_blocks=blocks)
    runner.run(plan).result()
    if tokens < _room(runner):
        runner.run(StepPlan(next(steps), decode_slots=slots)).result()
    runner.run(StepPlan(next(steps), released_slots=slots)).result()


def _together(runner: Runner, steps: Iterator[int]) -> None:
    """A chunk beside a decode row that a grammar masks."""
    slots: I32 = np.arange(2, dtype=np.int32)
    seats, blocks = [_seat(0, 1), _seat(1, BESIDE)], own_blocks(runner, 2, BESIDE)
    runner.run(StepPlan(next(steps), rows=[_row(0, 1)], new_slots=seats, new_blocks=blocks)).result()
    pending = runner.run(StepPlan(next(steps), decode_slots=slots[:1], rows=[_row(1, BESIDE)], masked=slots[:1]))
    pending.sample({0: b"\xff" * -(-runner.capacity().vocab_size // 8)})
    pending.result()
    runner.run(StepPlan(next(steps), released_slots=slots)).result()
