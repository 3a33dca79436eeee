"""Block op: the norm behind the last layer."""

from __future__ import annotations

from torch import Tensor

from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import Norm, Primitives


def final_norm(ops: Primitives, stream: Stream, norm: Norm) -> Tensor:
    """The normed residual [T, D]."""
    return ops.rms_norm(stream.residual_TD, norm.weight_D, norm.eps)
