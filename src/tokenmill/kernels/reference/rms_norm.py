"""Root-mean-square norm, as Llama computes it."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) in fp32, cast to x's dtype, then times weight. Out: like x_TD (any leading axes)."""
    x = x_TD.float()
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed.to(x_TD.dtype) * weight_D
