"""The gated MLP's activation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) * up of gate_up_T2F = gate beside up. Out: [T, F], same dtype."""
    gate, up = gate_up_T2F.chunk(2, -1)
    return functional.silu(gate) * up
