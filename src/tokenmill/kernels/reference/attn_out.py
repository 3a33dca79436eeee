"""Block op: output projection, reduce, residual."""

from __future__ import annotations

from torch import Tensor

from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import AttentionParts, Norm, Primitives


def attn_out(ops: Primitives, stream: Stream, y_TM: Tensor, parts: AttentionParts, following: Norm) -> Stream:
    """The residual plus the projected, reduced y. The following norm is left to the next block."""
    return Stream(stream.residual_TD + parts.reduce(parts.out(y_TM)))
