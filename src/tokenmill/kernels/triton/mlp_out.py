"""Block op mlp_out: product, residual and the next norm's sums of squares as one kernel where tokens are few."""

from __future__ import annotations

from torch import Tensor

from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import MlpParts, Norm, Primitives
from tokenmill.kernels.triton._fuse import add_to_stream


def mlp_out(ops: Primitives, stream: Stream, y_TF: Tensor, parts: MlpParts, following: Norm) -> Stream:
    """As the reference; `carry` may hold sums of squares [parts, T] of the new residual."""
    return add_to_stream(parts.down, stream, y_TF, parts.reduce)
