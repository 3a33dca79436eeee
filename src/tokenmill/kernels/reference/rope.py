"""Rotary position embedding, half rotation: pairs are (i, i + K / 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """x_THK rotated by fp32 cos_TK, sin_TK [T, K / 2]; in fp32, cast back. Out: like x_THK."""
    first, second = x_THK.float().chunk(2, -1)
    cos, sin = cos_TK[:, None], sin_TK[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x_THK.dtype)
