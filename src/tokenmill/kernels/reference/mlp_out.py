"""Block op: down projection, reduce, residual."""

from __future__ import annotations

from torch import Tensor

from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import MlpParts, Norm, Primitives


def mlp_out(ops: Primitives, stream: Stream, y_TF: Tensor, parts: MlpParts, following: Norm) -> Stream:
    """The residual plus the projected, reduced y. The following norm is left to the next block."""
    return Stream(stream.residual_TD + parts.reduce(parts.down(y_TF)))
