"""mask_rows: bits are read once and only what is forbidden is written."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK_V = 2048


@triton.jit
def _mask_rows(x_ptr, rows_ptr, bits_ptr, V, B, BLOCK_V: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = v < V
    bits_V = tl.load(bits_ptr + entry * B + v // 8, mask=inside, other=255).to(tl.int32)
    forbidden = ((bits_V >> (v % 8)) & 1) == 0
    row_ptr = x_ptr + tl.load(rows_ptr + entry) * V
    tl.store(row_ptr + v, tl.full([BLOCK_V], float("-inf"), tl.float32), mask=inside & forbidden)


def mask_rows(x_RV: Tensor, rows_M: Tensor, bits_MB: Tensor) -> None:
    """As the reference. x has its rows side by side."""
    (M, B), V = bits_MB.shape, x_RV.shape[1]
    if M:
        _mask_rows[(M, triton.cdiv(V, BLOCK_V))](x_RV, rows_M, bits_MB.contiguous(), V, B, BLOCK_V)
