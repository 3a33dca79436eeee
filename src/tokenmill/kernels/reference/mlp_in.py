"""Block op: from the residual to the gated MLP's inner vector."""

from __future__ import annotations

from torch import Tensor

from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import MlpParts, Primitives


def mlp_in(ops: Primitives, stream: Stream, parts: MlpParts) -> Tensor:
    """Norm, gate and up, activation. Out: [T, F]."""
    return ops.silu_mul(parts.gate_up(ops.rms_norm(stream.residual_TD, parts.norm.weight_D, parts.norm.eps)))
