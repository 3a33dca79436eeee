"""rope: one program a token, all heads at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rope(x_ptr, cos_ptr, sin_ptr, out_ptr, stride_t, H: tl.constexpr, HALF: tl.constexpr, BLOCK_H: tl.constexpr,
          BLOCK_K: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    h, k = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_K)[None, :]
    inside = (h < H) & (k < HALF)
    cos_1K = tl.load(cos_ptr + token * HALF + k, mask=k < HALF, other=0.0)
    sin_1K = tl.load(sin_ptr + token * HALF + k, mask=k < HALF, other=0.0)
    x_HK = x_ptr + token * stride_t + h * 2 * HALF + k
    first = tl.load(x_HK, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_HK + HALF, mask=inside, other=0.0).to(tl.float32)
    out_HK = out_ptr + token * H * 2 * HALF + h * 2 * HALF + k
    tl.store(out_HK, (first * cos_1K - second * sin_1K).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_HK + HALF, (second * cos_1K + first * sin_1K).to(out_ptr.dtype.element_ty), mask=inside)


def rope(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """As the reference. Tokens may lie apart (a slice of q, k and v side by side); heads may not."""
    T, H, K = x_THK.shape
    if x_THK.stride()[1:] != (K, 1):
        x_THK = x_THK.contiguous()
    out_THK = torch.empty((T, H, K), dtype=x_THK.dtype, device=x_THK.device)
    if T:
        blocks = triton.next_power_of_2(H), triton.next_power_of_2(K // 2)
        _rope[(T,)](x_THK, cos_TK.contiguous(), sin_TK.contiguous(), out_THK, x_THK.stride(0), H, K // 2, *blocks)
    return out_THK
