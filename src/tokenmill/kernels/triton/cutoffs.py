"""cutoffs without a sort: bisection on values, two bits a pass, a row in the second-level cache.

Floats become integers in the same order. The k-th value is the least t above which fewer than k values lie; top-p's
is the least t above which less than p of the mass lies. At most 17 passes each, and none where a row does not ask.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_V = 4096


@triton.jit
def _ordered(x):
    """fp32 -> int32 in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _above(row_ptr, V, most, t, MASS: tl.constexpr, BLOCK_V: tl.constexpr):
    """Of the values above each of the ordered integers t [4]: their number, or the sum of exp(x - most)."""
    first, second, third = t
    sum1 = tl.zeros([BLOCK_V], tl.float32)
    sum2 = tl.zeros([BLOCK_V], tl.float32)
    sum3 = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        x = tl.load(row_ptr + v, mask=v < V, other=float("-inf"))
        key = _ordered(x)
        size = tl.exp(x - most) if MASS else tl.full([BLOCK_V], 1.0, tl.float32)
        # What lies behind the row's end is no value.
        size = tl.where(v < V, size, 0.0)
        sum1 += tl.where(key > first, size, 0.0)
        sum2 += tl.where(key > second, size, 0.0)
        sum3 += tl.where(key > third, size, 0.0)
    return tl.sum(sum1, 0), tl.sum(sum2, 0), tl.sum(sum3, 0)


@triton.jit
def _least(row_ptr, V, most, highest, limit, MASS: tl.constexpr, BLOCK_V: tl.constexpr):
    """The least ordered integer above which lies less than `limit`, and what lies above it."""
    # Below every number, -inf too: the answer is then -inf, which filters nothing.
    low = tl.full([], -2139095042, tl.int64)
    high = highest.to(tl.int64)
    above = limit * 0.0
    while high - low > 1:
        step = tl.maximum((high - low) // 4, 1)
        t1 = low + step
        t2 = tl.minimum(low + 2 * step, high)
        t3 = tl.minimum(low + 3 * step, high)
        wanted = (t1.to(tl.int32), t2.to(tl.int32), t3.to(tl.int32))
        n1, n2, n3 = _above(row_ptr, V, most, wanted, MASS, BLOCK_V)
        if n1 < limit:
            high, above = t1, n1
        elif n2 < limit:
            low, high, above = t1, t2, n2
        elif n3 < limit:
            low, high, above = t2, t3, n3
        else:
            low = t3
    return high.to(tl.int32), above


# Parameters may be columns of a table of one row.
@triton.jit(do_not_specialize_on_alignment=("top_k_ptr", "top_p_ptr", "min_p_ptr"))
def _cutoffs(x_ptr, top_k_ptr, top_p_ptr, min_p_ptr, cut_ptr, V, BLOCK_V: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = x_ptr + row * V
    top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    cut = tl.full([], float("-inf"), tl.float32)
    if (top_k > 0) | (top_p < 1.0) | (min_p > 0.0):
        most_V = tl.full([BLOCK_V], float("-inf"), tl.float32)
        for start in range(0, V, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            most_V = tl.maximum(most_V, tl.load(row_ptr + v, mask=v < V, other=float("-inf")))
        most = tl.max(most_V, 0)
        highest = _ordered(most)
        least = tl.full([], -2139095041, tl.int32)
        if top_k > 0:
            least, _ = _least(row_ptr, V, most, highest, top_k.to(tl.float32), False, BLOCK_V)
        if top_p < 1.0:
            count, _, _ = _above(row_ptr, V, most, (least, least, least), False, BLOCK_V)
            mass, _, _ = _above(row_ptr, V, most, (least, least, least), True, BLOCK_V)
            # Of values at the k-th, only as many count as the first k hold; without top-k all that are left do.
            edge = (least ^ ((least >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
            mass += tl.where(top_k > 0, tl.maximum(top_k.to(tl.float32) - count, 0.0) * tl.exp(edge - most), 0.0)
            nucleus, _ = _least(row_ptr, V, most, highest, top_p * mass, True, BLOCK_V)
            least = tl.maximum(least, nucleus)
        cut = (least ^ ((least >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        if min_p > 0.0:
            cut = tl.maximum(cut, most + tl.log(min_p))
    tl.store(cut_ptr + row, cut)


def cutoffs(x_RV: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor) -> Tensor:
    """As the reference."""
    x_RV, cut_R = x_RV.contiguous(), torch.empty(len(x_RV), dtype=torch.float32, device=x_RV.device)
    if len(x_RV):
        parameters = top_k_R.contiguous(), top_p_R.contiguous(), min_p_R.contiguous()
        _cutoffs[(len(x_RV),)](x_RV, *parameters, cut_R, x_RV.shape[1], BLOCK_V, num_warps=8)
    return cut_R
