"""Groups: `NullGroup` for one rank, `TorchGroup` over gloo (CPU) or nccl (CUDA).

A collective whose peer died raises EngineDeadError (gloo: at once, when the peer's connection closes; nccl: when
`TIMEOUT_S` has passed), so that no rank waits for ever.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tokenmill import env
from tokenmill.distributed.contract import Group as Group
from tokenmill.errors import ConfigError, EngineDeadError

TIMEOUT_S = 60.0


class NullGroup:
    """One rank: every collective is the identity."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        return x


class TorchGroup:
    """Ranks of a torch process group. One per process; `close` leaves it."""

    def __init__(self, rank: int, size: int, init_method: str, device: torch.device):
        if not 0 <= rank < size:
            raise ConfigError(f"rank is {rank}; it must lie in 0..{size - 1} (tp {size})")
        self.rank, self.size = rank, size
        env.keep_gloo_local()
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=init_method,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=TIMEOUT_S),
            device_id=device if device.type == "cuda" else None,
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        try:
            dist.all_reduce(x)
        except RuntimeError as error:
            raise EngineDeadError(f"rank {self.rank} lost its peers in a sum over {self.size} ranks") from error
        return x

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        try:
            dist.all_gather(parts, x)
        except RuntimeError as error:
            raise EngineDeadError(f"rank {self.rank} lost its peers in a gather over {self.size} ranks") from error
        return torch.cat(parts, dim)

    def abort(self) -> None:
        """Breaks off collectives under way, from any thread: a kernel that waits for a dead peer would never end.

        gloo needs none of it: its connections close with the peer's process.
        """
        if dist.is_initialized() and dist.get_backend() == "nccl":
            backend = dist.group.WORLD._get_backend(torch.device("cuda"))  # type: ignore[union-attr]
            backend.abort()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
