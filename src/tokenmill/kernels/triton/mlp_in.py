"""Block op mlp_in: norm, gate, up and SiLU as one kernel where tokens are few."""

from __future__ import annotations

from torch import Tensor

from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import MlpParts, Primitives
from tokenmill.kernels.triton._fuse import fused_product, normed_input
from tokenmill.kernels.triton._launch import gated

BLOCK_N = 64


def mlp_in(ops: Primitives, stream: Stream, parts: MlpParts) -> Tensor:
    """As the reference, with one rounding less."""
    job = fused_product(parts.gate_up, stream, parts.norm, block_n=BLOCK_N)
    if job is not None:
        return gated(job)
    return ops.silu_mul(parts.gate_up(normed_input(ops, stream, parts.norm)))
