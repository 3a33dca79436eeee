"""What ends a half of a layer: the sum over ranks, and behind it the norm that some families put on what is added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tokenmill.kernels.ops import Norm, Reduce
from tokenmill.layers.linear import Loader


@dataclass(frozen=True, slots=True)
class NormedReduce:
    """`reduce(x_TD)`, normed."""

    reduce: Reduce
    norm: Norm
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self.rms_norm(self.reduce(x_TD), self.norm.weight_D, self.norm.eps)


def reduce_with(loader: Loader, post_norm: str, size: int, eps: float) -> Reduce:
    """The ranks' sum, through the norm called `post_norm` where there is one ("": none)."""
    if not post_norm:
        return loader.group.all_reduce
    norm = Norm(loader.vector(f"{post_norm}.weight", size), eps)
    return NormedReduce(loader.group.all_reduce, norm, loader.ops.primitives.rms_norm)
