"""What layers and runners see of the ranks that share one replica."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Group(Protocol):
    """Ranks that hold parts of one model. Every rank calls the same collectives in the same order."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each; `x` may be overwritten."""
        ...

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """Every rank's `x`, joined in rank order along `dim`; all of one shape."""
        ...
