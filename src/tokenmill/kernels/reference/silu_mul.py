"""The gated MLP's activation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) * up of gate_up_T2F = gate beside up. Out: [T, F], same dtype."""
    gate, up = gate_up_T2F.chunk(2, -1)
    return F.silu(gate) * up
