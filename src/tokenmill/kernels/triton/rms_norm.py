"""rms_norm: one program a row, one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm(x_ptr, weight_ptr, out_ptr, eps, D: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    x_D = tl.load(x_ptr + row * D + d, mask=inside, other=0.0).to(tl.float32)
    normed_D = x_D * tl.rsqrt(tl.sum(x_D * x_D, 0) / D + eps)
    weight_D = tl.load(weight_ptr + d, mask=inside, other=0.0)
    # Rounded to x's dtype before the weight, as the reference and the models' authors do.
    out_D = normed_D.to(out_ptr.dtype.element_ty).to(tl.float32) * weight_D.to(tl.float32)
    tl.store(out_ptr + row * D + d, out_D.to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As the reference. x may have any leading axes."""
    x_TD = x_TD.contiguous()
    out_TD, D = torch.empty_like(x_TD), x_TD.shape[-1]
    if x_TD.numel():
        _rms_norm[(x_TD.numel() // D,)](x_TD, weight_D, out_TD, eps, D, triton.next_power_of_2(D))
    return out_TD
