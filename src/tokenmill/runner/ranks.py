"""Tensor parallel: rank 0's Runner sends every plan to the other ranks and carries it out itself; they follow.

Every rank holds its share of weights and cache, the same slots, and draws the same tokens: logits are gathered to the
same bits on each and draws depend on seed and position alone. So nothing comes back from a rank but its death, which
makes every later result here an EngineDeadError.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from tokenmill.config import EngineConfig
from tokenmill.distributed import wire
from tokenmill.distributed.contract import Group
from tokenmill.distributed.group import TorchGroup
from tokenmill.distributed.launch import Ranks, Seat, start_ranks
from tokenmill.distributed.wire import Link
from tokenmill.engine.contract import Capacity, Pending, Runner, StepPlan, StepResult
from tokenmill.errors import CapacityError, ConfigError, EngineDeadError, FormatError

# Steps a rank may have queued before it looks at the outcome of the oldest.
MOST_QUEUED = 2

Build = Callable[[EngineConfig, torch.device, Group], Runner]


class LeadPending:
    """Rank 0's step. `result` raises EngineDeadError where a rank died."""

    def __init__(self, pending: Pending, ranks: Ranks):
        self._pending, self._ranks = pending, ranks

    def sample(self, masks: dict[int, bytes]) -> None:
        self._ranks.send(wire.MASKS, wire.encode_masks(masks))
        self._pending.sample(masks)

    def result(self) -> StepResult:
        try:
            result = self._pending.result()
        except EngineDeadError as error:
            raise EngineDeadError(self._ranks.failure or str(error)) from error
        # A collective that was broken off on the device ends like one that was answered.
        self._ranks.check()
        return result


class LeadRunner:
    """Rank 0's Runner."""

    def __init__(self, local: Runner, ranks: Ranks, group: TorchGroup):
        self._local, self._ranks, self._group = local, ranks, group

    def capacity(self) -> Capacity:
        return self._local.capacity()

    def run(self, plan: StepPlan) -> Pending:
        self._ranks.send(wire.PLAN, wire.encode_plan(plan))
        return LeadPending(self._local.run(plan), self._ranks)

    def control(self, op: str, **arguments: Any) -> Any:
        if op in wire.CONTROLS:
            self._ranks.send(wire.CONTROL, wire.encode_control(op, arguments))
        return self._local.control(op, **arguments)

    def close(self) -> None:
        # The other ranks end first: they leave the group together with us.
        dead = self._ranks.failure is not None
        self._ranks.close()
        if not dead:
            self._local.close()
        self._group.close()


def lead(config: EngineConfig, device: torch.device, build: Build) -> Runner:
    """Starts the other ranks, builds rank 0's share beside theirs, and returns the Runner of them all."""
    ranks = start_ranks("tokenmill.runner.runner:follow", config)
    try:
        group = TorchGroup(0, ranks.size, ranks.init_method, device)
        ranks.on_death = group.abort
        return LeadRunner(build(config, device, group), ranks, group)
    except BaseException as error:
        failure = ranks.failure
        ranks.close()
        # What broke off here because a rank died is told by that rank's own words.
        if failure is not None and not isinstance(error, (ConfigError, FormatError, CapacityError)):
            raise EngineDeadError(failure) from error
        raise


def serve_rank(seat: Seat, device: torch.device, build: Build) -> None:
    """The life of a rank that is not 0: builds its share, then follows until told to close."""
    seat.link.send(wire.UP)
    group = TorchGroup(seat.rank, seat.size, seat.init_method, device)
    runner = build(seat.config, device, group)
    follow_plans(runner, seat.link)
    runner.close()


def follow_plans(runner: Runner, link: Link) -> None:
    """Carries out what rank 0 sends. Raises what a step raised; ends the process where rank 0 is gone."""
    queued: deque[Pending] = deque()
    while (frame := link.receive()) is not None:
        kind, payload = frame
        if kind == wire.CLOSE:
            return
        if kind == wire.MASKS:
            queued[-1].sample(wire.decode_masks(payload))
            continue
        while len(queued) >= (1 if kind == wire.CONTROL else MOST_QUEUED):
            queued.popleft().result()
        if kind == wire.CONTROL:
            op, arguments = wire.decode_control(payload)
            runner.control(op, **arguments)
            continue
        queued.append(runner.run(wire.decode_plan(payload)))
    os._exit(1)
