"""Rotary position embedding on a CPU: halves are written where they belong, without a copy of their joining."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.reference.rope import rope as reference


def rope(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """As the reference."""
    if x_THK.dtype != torch.float32:
        return reference(x_THK, cos_TK, sin_TK)
    half = x_THK.shape[-1] // 2
    first, second = x_THK[..., :half], x_THK[..., half:]
    cos, sin = cos_TK[:, None], sin_TK[:, None]
    out = torch.empty_like(x_THK, memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out
