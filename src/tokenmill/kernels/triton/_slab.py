"""Many tokens: 4-bit weights written out as a plain matrix, which the library's product then reads.

The matrix lives for one call, so that the whole model needs memory for its largest only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.triton._held import Held
from tokenmill.kernels.triton._pack import BIAS

BLOCK_N = 64


@triton.jit
def _widen(w_ptr, scales_ptr, zeros_ptr, out_ptr, N, M, stride, ZEROS: tl.constexpr, PLANES: tl.constexpr,
           BIAS: tl.constexpr, BLOCK_N: tl.constexpr):
    chunk, i = tl.program_id(1), tl.arange(0, 32)
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = row_N < N
    start_N = (row_N // 16).to(tl.int64) * (tl.num_programs(1) * 512) + (row_N % 16) * 32
    words_NI = tl.load(w_ptr + start_N[:, None] + chunk * 512 + i[None, :], mask=inside_N[:, None], other=0)
    for p in tl.static_range(4):
        group = (chunk * 4 + p) // PLANES
        scale_N = tl.load(scales_ptr + group * stride + row_N, mask=inside_N, other=0.0).to(tl.float32)
        zero_N = tl.full([BLOCK_N], 8.0, tl.float32)
        if ZEROS:
            zero_N = tl.load(zeros_ptr + group * stride + row_N, mask=inside_N, other=0.0).to(tl.float32) - BIAS
        value_NI = (((words_NI >> (4 * p)) & 15).to(tl.float32) - zero_N[:, None]) * scale_N[:, None]
        k = chunk * 128 + p * 32 + i
        at_NI = out_ptr + row_N[:, None].to(tl.int64) * M + k[None, :]
        tl.store(at_NI, value_NI.to(out_ptr.dtype.element_ty), mask=inside_N[:, None] & (k < M)[None, :])


def widened(held: Held) -> Tensor:
    """[N, M] in the model's dtype, columns in kernel order: what `Held` of NIBBLES stands for."""
    out_NM = torch.empty((held.num_out, held.num_in), dtype=held.dtype, device=held.w.device)
    grid = (triton.cdiv(held.num_out, BLOCK_N), triton.cdiv(held.num_in, 128))
    _widen[grid](held.w, held.scales_QN, held.zeros_QN, out_NM, held.num_out, held.num_in, held.stride, held.has_zeros,
                 held.group // 32, BIAS[held.dtype], BLOCK_N)
    return out_NM
