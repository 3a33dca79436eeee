"""Ranks as threads of one process: a `distributed.contract.Group` for tests of models in shares."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

import torch
from torch import Tensor


@dataclass
class Meeting:
    """Where ranks put what they have and take what all have."""

    size: int
    places: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = Barrier(self.size)
        self.places = [None] * self.size

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        self.places[rank] = x
        self.barrier.wait(30)
        seen = list(self.places)
        self.barrier.wait(30)
        return seen


@dataclass
class ThreadGroup:
    meeting: Meeting
    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self.meeting.exchange(self.rank, x)).sum(0)

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        return torch.cat(self.meeting.exchange(self.rank, x), dim)


def on_ranks(size: int, work) -> list:
    """`work(group)` on every rank at once; what each gave, in rank order."""
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(ThreadGroup(meeting, rank, size)), range(size)))
