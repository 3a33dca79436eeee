"""penalise: one pass over the rows that ask for something, tables read where they lie."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_V = 2048


# Factors are columns of a table whose rows lie apart.
@triton.jit(do_not_specialize_on_alignment=("factors_ptr",))
def _penalise(x_ptr, places_ptr, seen_ptr, counts_ptr, factors_ptr, stride, V, BLOCK_V: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    factors = factors_ptr + row * stride
    repetition, presence, frequency = tl.load(factors), tl.load(factors + 1), tl.load(factors + 2)
    if (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0):
        v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
        inside, table = v < V, tl.load(places_ptr + row) * V
        x_V = tl.load(x_ptr + row * V + v, mask=inside, other=0.0)
        counts_V = tl.load(counts_ptr + table + v, mask=inside, other=0).to(tl.float32)
        known_V = (tl.load(seen_ptr + table + v, mask=inside, other=0) != 0) | (counts_V > 0)
        # Rounded as torch divides, so that equal logits stay equal.
        by_V = tl.zeros([BLOCK_V], tl.float32) + repetition
        scaled_V = tl.where(x_V > 0, tl.div_rn(x_V, by_V), x_V * repetition)
        x_V = tl.where(known_V, scaled_V, x_V) - frequency * counts_V
        x_V -= tl.where(counts_V > 0, presence, 0.0)
        tl.store(x_ptr + row * V + v, x_V, mask=inside)


def penalise(x_RV: Tensor, places_R: Tensor, seen_SV: Tensor, counts_SV: Tensor, factors_R3: Tensor) -> None:
    """As the reference. x and the tables have their rows side by side; of factors each row has."""
    R, V = x_RV.shape
    if R:
        # Bytes, which is what torch's bool is.
        seen, grid = seen_SV.view(torch.uint8), (R, triton.cdiv(V, BLOCK_V))
        _penalise[grid](x_RV, places_R, seen, counts_SV, factors_R3, factors_R3.stride(0), V, BLOCK_V)
