"""mask_rows: what a grammar forbids becomes -inf."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mask_rows(x_RV: Tensor, rows_M: Tensor, bits_MB: Tensor) -> None:
    """Changes rows of x, which occur once each. bits uint8 [M, ceil(V / 8)], the lowest bit first: 1 is allowed."""
    eight = torch.arange(8, dtype=torch.uint8, device=x_RV.device)
    allowed_MV = ((bits_MB[:, :, None] >> eight) & 1).flatten(1)[:, : x_RV.shape[1]].bool()
    x_RV[rows_M] = x_RV[rows_M].masked_fill(~allowed_MV, -math.inf)
