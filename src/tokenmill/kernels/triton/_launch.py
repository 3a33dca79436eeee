"""Products with what follows them: kernels over `_matmul`, and their launches.

  linear  W x^T (+ bias), rounded, (+ residual, and the sums of squares the next norm needs)
  gated   silu(gate) up, where W holds gate's rows and then up's

Inputs may be normed on the way, from sums of squares that an earlier program left (`Normed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.ops import Norm
from tokenmill.kernels.triton._held import Held, Tiling, tiling
from tokenmill.kernels.triton._matmul import _halves, _meet, _product
from tokenmill.kernels.triton._pack import BIAS

INTERPRETED = triton.knobs.runtime.interpret


def early_launch(early: int) -> dict[str, Any]:
    """The launch option of a kernel that may start while the one before still runs, and waits for it by itself."""
    return {"launch_pdl": True} if early else {}


# One kernel for every number of tokens: of a step, or of a bucket.
@triton.jit(do_not_specialize=("T",))
def _linear(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, sums_ptr, scratch_ptr, counters_ptr, bias_ptr, residual_ptr,
            out_ptr, squares_ptr, T, N, M, stride, eps, KIND: tl.constexpr, SIGN: tl.constexpr, ZEROS: tl.constexpr,
            GROUP: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
            EVEN: tl.constexpr, FOLD: tl.constexpr, ASM: tl.constexpr, EARLY: tl.constexpr, SPLITS: tl.constexpr,
            BLOCK_N: tl.constexpr,
            BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr):
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token_T = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    acc_NT = _product(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, sums_ptr, row_N, token_T, T, M, stride, eps, KIND,
                      SIGN, ZEROS, GROUP, BIAS, NORM, PARTS, BLOCK_P, EVEN, FOLD, ASM, EARLY, SPLITS, BLOCK_N, BLOCK_T,
                      BLOCK_K)
    tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    acc_NT, mine = _meet(acc_NT, scratch_ptr, counters_ptr, tile, SPLITS, BLOCK_N, BLOCK_T)
    if mine:
        dtype = out_ptr.dtype.element_ty
        inside = (row_N < N)[:, None] & (token_T < T)[None, :]
        at_NT = token_T[None, :].to(tl.int64) * N + row_N[:, None]
        if HAS_BIAS:
            acc_NT += tl.load(bias_ptr + row_N, mask=row_N < N, other=0.0).to(tl.float32)[:, None]
        out_NT = acc_NT.to(dtype)
        if RESIDUAL:
            residual_NT = tl.load(residual_ptr + at_NT, mask=inside, other=0.0)
            out_NT = (out_NT.to(tl.float32) + residual_NT.to(tl.float32)).to(dtype)
            kept_NT = tl.where(inside, out_NT.to(tl.float32), 0.0)
            tl.store(squares_ptr + tl.program_id(0) * T + token_T, tl.sum(kept_NT * kept_NT, 0), mask=token_T < T)
        tl.store(out_ptr + at_NT, out_NT, mask=inside)


@triton.jit(do_not_specialize=("T",))
def _gated(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, sums_ptr, scratch_ptr, counters_ptr, bias_ptr, out_ptr, T, F,
           M, stride, eps, KIND: tl.constexpr, SIGN: tl.constexpr, ZEROS: tl.constexpr, GROUP: tl.constexpr,
           BIAS: tl.constexpr, NORM: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, EVEN: tl.constexpr,
           FOLD: tl.constexpr, ASM: tl.constexpr, EARLY: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr,
            BLOCK_T: tl.constexpr,
           BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr):
    """A tile is BLOCK_N / 2 rows of gate and the same rows of up."""
    HALF: tl.constexpr = BLOCK_N // 2
    i = tl.arange(0, BLOCK_N)
    inner_N = tl.program_id(0) * HALF + i % HALF
    row_N = tl.minimum(inner_N, F - 1) + (i // HALF) * F
    token_T = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    acc_NT = _product(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, sums_ptr, row_N, token_T, T, M, stride, eps, KIND,
                      SIGN, ZEROS, GROUP, BIAS, NORM, PARTS, BLOCK_P, EVEN, FOLD, ASM, EARLY, SPLITS, BLOCK_N, BLOCK_T,
                      BLOCK_K)
    tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    acc_NT, mine = _meet(acc_NT, scratch_ptr, counters_ptr, tile, SPLITS, BLOCK_N, BLOCK_T)
    if mine:
        if HAS_BIAS:
            acc_NT += tl.load(bias_ptr + row_N).to(tl.float32)[:, None]
        dtype = out_ptr.dtype.element_ty
        gate_HT, up_HT = _halves(acc_NT.to(dtype).to(tl.float32), BLOCK_N, BLOCK_T)
        out_HT = gate_HT / (1.0 + tl.exp(-gate_HT)) * up_HT
        f = tl.program_id(0) * HALF + tl.arange(0, HALF)
        at_HT = token_T[None, :].to(tl.int64) * F + f[:, None]
        tl.store(out_ptr + at_HT, out_HT.to(dtype), mask=(f < F)[:, None] & (token_T < T)[None, :])


@dataclass(frozen=True, slots=True)
class Normed:
    """A norm the product applies to its inputs. squares_PT: sums of squares of the inputs, by whoever had parts."""

    norm: Norm
    squares_PT: Tensor


@dataclass(frozen=True, slots=True)
class Product:
    """One product about to be launched: arguments all its kernels share."""

    held: Held
    x_TM: Tensor
    cut: Tiling
    normed: Normed | None = None

    @property
    def tokens(self) -> int:
        return len(self.x_TM)

    def pointers(self, programs: int) -> tuple[Tensor, ...]:
        """x, w, scales, zeros, norm, sums, scratch, counters, bias: what is not there is x, which nobody reads."""
        held, x, cut = self.held, self.x_TM, self.cut
        size = programs * cut.splits * cut.block_n * cut.block_t if cut.splits > 1 else 0
        scratch = torch.empty(size, dtype=torch.float32, device=x.device) if size else x
        norm, squares = (self.normed.norm.weight_D, self.normed.squares_PT) if self.normed else (x, x)
        bias = x if held.bias_N is None else held.bias_N
        return x, held.w, held.scales_QN, held.zeros_QN, norm, squares, scratch, held.counters, bias

    def constants(self) -> dict[str, Any]:
        held, cut = self.held, self.cut
        parts = len(self.normed.squares_PT) if self.normed else 1
        return {
            "KIND": held.kind, "SIGN": held.sign, "ZEROS": held.has_zeros, "GROUP": held.group,
            "BIAS": BIAS[held.dtype], "NORM": self.normed is not None, "PARTS": parts,
            "BLOCK_P": triton.next_power_of_2(parts), "EVEN": held.even, "FOLD": cut.fold,
            "ASM": cut.asm and not INTERPRETED and held.dtype != torch.float32, "EARLY": cut.early,
            "SPLITS": cut.splits, "BLOCK_N": cut.block_n, "BLOCK_T": cut.block_t, "BLOCK_K": 128,
            "HAS_BIAS": held.bias_N is not None,
            "num_warps": cut.warps, "num_stages": cut.stages, **early_launch(cut.early),
        }  # fmt: skip

    @property
    def eps(self) -> float:
        return self.normed.norm.eps if self.normed else 0.0


def product(held: Held, x_TM: Tensor, normed: Normed | None = None, cut: Tiling | None = None) -> Product:
    if held.order_M is not None:
        x_TM = x_TM[:, held.order_M]
    return Product(held, x_TM.contiguous(), cut or tiling(held, len(x_TM)), normed)


def linear(job: Product, residual_TN: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """[T, N], and with a residual the sums of squares of the result [tiles, T]."""
    held, T = job.held, job.tokens
    out_TN = torch.empty((T, held.num_out), dtype=held.dtype, device=job.x_TM.device)
    rows, groups = triton.cdiv(held.num_out, job.cut.block_n), triton.cdiv(T, job.cut.block_t)
    squares, residual = None, out_TN
    if residual_TN is not None:
        squares, residual = out_TN.new_empty((rows, T), dtype=torch.float32), residual_TN.contiguous()
    _linear[(rows, job.cut.splits, groups)](
        *job.pointers(rows * groups), residual, out_TN, out_TN if squares is None else squares, T, held.num_out,
        held.num_in, held.stride, job.eps, RESIDUAL=squares is not None, **job.constants(),
    )
    return out_TN, squares


def gated(job: Product) -> Tensor:
    """[T, F] of a weight of 2 F rows."""
    held, T, F = job.held, job.tokens, job.held.num_out // 2
    out_TF = torch.empty((T, F), dtype=held.dtype, device=job.x_TM.device)
    rows, groups = triton.cdiv(F, job.cut.block_n // 2), triton.cdiv(T, job.cut.block_t)
    _gated[(rows, job.cut.splits, groups)](
        *job.pointers(rows * groups), out_TF, T, F, held.num_in, held.stride, job.eps, **job.constants(),
    )
    return out_TF
