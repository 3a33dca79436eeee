"""Block op attn_in: a head's tile of q, k and v is normed, turned and stored as its cache kind has it, in one kernel.

Few tokens: that kernel is the end of the product itself (`_project`), whose inputs are normed on the way where the
block before left sums of squares. More: it follows the product (`_finish`). Codes are the reference's to the bit where
the numbers before them are: k is rounded to the model's dtype before it is quantized, as there.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.bind import BindFacts
from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import AttentionParts, Norm, Primitives
from tokenmill.kernels.triton._fuse import fused_product, normed_input
from tokenmill.kernels.triton._kinds import CODES, ROTATED, _rotate_halves, _store_heads, planes
from tokenmill.kernels.triton._launch import Product
from tokenmill.kernels.triton._matmul import _halves, _meet, _product
from tokenmill.kv.contract import KVPages

FINISH_TOKENS = 16


def refuses(facts: BindFacts) -> str | None:
    return None if facts.kv in CODES else f"KV kind {facts.kv} is not fused"


@triton.jit
def _norm_head(first_HT, second_HT, norm_ptr, eps, h, HALF: tl.constexpr, dtype: tl.constexpr):
    """RMS norm of a head's channels, rounded before and behind its weight as rms_norm does."""
    inside_H = h < HALF
    mean_T = (tl.sum(first_HT * first_HT, 0) + tl.sum(second_HT * second_HT, 0)) / (2 * HALF)
    rstd_T = tl.rsqrt(mean_T + eps)
    first_H1 = tl.load(norm_ptr + h, mask=inside_H, other=0.0).to(tl.float32)[:, None]
    second_H1 = tl.load(norm_ptr + HALF + h, mask=inside_H, other=0.0).to(tl.float32)[:, None]
    first_HT = ((first_HT * rstd_T[None, :]).to(dtype).to(tl.float32) * first_H1).to(dtype).to(tl.float32)
    second_HT = ((second_HT * rstd_T[None, :]).to(dtype).to(tl.float32) * second_H1).to(dtype).to(tl.float32)
    return first_HT, second_HT


@triton.jit
def _finish_head(first_HT, second_HT, head, token_T, h, T, cos_ptr, sin_ptr, logn_ptr, writes_ptr, q_norm_ptr,
                 k_norm_ptr, q_ptr, k_ptr, k_params_ptr, v_ptr, v_params_ptr, q_eps, k_eps, H: tl.constexpr,
                 G: tl.constexpr, HALF: tl.constexpr, CACHE: tl.constexpr, ROTATE: tl.constexpr, Q_NORM: tl.constexpr,
                 K_NORM: tl.constexpr, LOGN: tl.constexpr):
    """A head's vectors as halves (fp32 numbers of the model's dtype) to q, or to the cache."""
    dtype = q_ptr.dtype.element_ty
    inside_T = token_T < T
    inside_HT = (h < HALF)[:, None] & inside_T[None, :]
    if head < H + G:
        # Two ifs: the outer one is settled when the kernel is compiled.
        if Q_NORM:  # noqa: SIM102
            if head < H:
                first_HT, second_HT = _norm_head(first_HT, second_HT, q_norm_ptr, q_eps, h, HALF, dtype)
        if K_NORM:  # noqa: SIM102
            if head >= H:
                first_HT, second_HT = _norm_head(first_HT, second_HT, k_norm_ptr, k_eps, h, HALF, dtype)
        angle_HT = token_T[None, :] * HALF + h[:, None]
        cos_HT = tl.load(cos_ptr + angle_HT, mask=inside_HT, other=0.0)
        sin_HT = tl.load(sin_ptr + angle_HT, mask=inside_HT, other=0.0)
        turned_HT = first_HT * cos_HT - second_HT * sin_HT
        second_HT = (second_HT * cos_HT + first_HT * sin_HT).to(dtype).to(tl.float32)
        first_HT = turned_HT.to(dtype).to(tl.float32)
    if head < H:
        if LOGN:
            factor_T = tl.load(logn_ptr + token_T, mask=inside_T, other=0.0)
            first_HT, second_HT = first_HT * factor_T[None, :], second_HT * factor_T[None, :]
        out_HT = q_ptr + (token_T[None, :].to(tl.int64) * H + head) * (2 * HALF) + h[:, None]
        tl.store(out_HT, first_HT.to(dtype), mask=inside_HT)
        tl.store(out_HT + HALF, second_HT.to(dtype), mask=inside_HT)
    else:
        if ROTATE:
            first_HT, second_HT = _rotate_halves(first_HT, second_HT, HALF, dtype)
        place_T = tl.load(writes_ptr + token_T, mask=inside_T, other=-1)
        wanted_T = inside_T & (place_T >= 0)
        if head < H + G:
            _store_heads(k_ptr, k_params_ptr, place_T * G + head - H, wanted_T, first_HT, second_HT, h, HALF, CACHE)
        else:
            _store_heads(v_ptr, v_params_ptr, place_T * G + head - H - G, wanted_T, first_HT, second_HT, h, HALF,
                         CACHE)


@triton.jit(do_not_specialize=("T",))
def _finish(qkv_ptr, T, cos_ptr, sin_ptr, logn_ptr, writes_ptr, q_norm_ptr, k_norm_ptr, q_ptr, k_ptr, k_params_ptr,
            v_ptr, v_params_ptr, q_eps, k_eps, H: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr,
            CACHE: tl.constexpr, ROTATE: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr, LOGN: tl.constexpr,
            BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr):
    head, h = tl.program_id(1), tl.arange(0, BLOCK_H)
    token_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside_HT = (h < HALF)[:, None] & (token_T < T)[None, :]
    at_HT = qkv_ptr + (token_T[None, :].to(tl.int64) * (H + 2 * G) + head) * (2 * HALF) + h[:, None]
    first_HT = tl.load(at_HT, mask=inside_HT, other=0.0).to(tl.float32)
    second_HT = tl.load(at_HT + HALF, mask=inside_HT, other=0.0).to(tl.float32)
    _finish_head(first_HT, second_HT, head, token_T, h, T, cos_ptr, sin_ptr, logn_ptr, writes_ptr, q_norm_ptr,
                 k_norm_ptr, q_ptr, k_ptr, k_params_ptr, v_ptr, v_params_ptr, q_eps, k_eps, H, G, HALF, CACHE, ROTATE,
                 Q_NORM, K_NORM, LOGN)


@triton.jit(do_not_specialize=("T",))
def _project(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, sums_ptr, scratch_ptr, counters_ptr, bias_ptr, T, cos_ptr,
             sin_ptr, logn_ptr, writes_ptr, q_norm_ptr, k_norm_ptr, q_ptr, k_ptr, k_params_ptr, v_ptr, v_params_ptr,
             q_eps, k_eps, M, stride, eps, KIND: tl.constexpr, SIGN: tl.constexpr, ZEROS: tl.constexpr,
             GROUP: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
             EVEN: tl.constexpr, FOLD: tl.constexpr, ASM: tl.constexpr, EARLY: tl.constexpr, SPLITS: tl.constexpr,
            BLOCK_N: tl.constexpr,
             BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr, H: tl.constexpr, G: tl.constexpr,
             HALF: tl.constexpr, CACHE: tl.constexpr, ROTATE: tl.constexpr, Q_NORM: tl.constexpr,
             K_NORM: tl.constexpr, LOGN: tl.constexpr):
    """A tile is a head: BLOCK_N = K rows of the joined q, k and v."""
    head = tl.program_id(0)
    row_N = head * BLOCK_N + tl.arange(0, BLOCK_N)
    token_T = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    acc_NT = _product(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, sums_ptr, row_N, token_T, T, M, stride, eps, KIND,
                      SIGN, ZEROS, GROUP, BIAS, NORM, PARTS, BLOCK_P, EVEN, FOLD, ASM, EARLY, SPLITS, BLOCK_N, BLOCK_T,
                      BLOCK_K)
    tile = tl.program_id(2) * tl.num_programs(0) + head
    acc_NT, mine = _meet(acc_NT, scratch_ptr, counters_ptr, tile, SPLITS, BLOCK_N, BLOCK_T)
    if mine:
        if HAS_BIAS:
            acc_NT += tl.load(bias_ptr + row_N).to(tl.float32)[:, None]
        value_NT = acc_NT.to(q_ptr.dtype.element_ty).to(tl.float32)
        first_HT, second_HT = _halves(value_NT, BLOCK_N, BLOCK_T)
        _finish_head(first_HT, second_HT, head, token_T, tl.arange(0, HALF), T, cos_ptr, sin_ptr, logn_ptr, writes_ptr,
                     q_norm_ptr, k_norm_ptr, q_ptr, k_ptr, k_params_ptr, v_ptr, v_params_ptr, q_eps, k_eps, H, G, HALF,
                     CACHE, ROTATE, Q_NORM, K_NORM, LOGN)


def attn_in(ops: Primitives, stream: Stream, parts: AttentionParts, rows: RowMeta, pages: KVPages) -> Tensor:
    """As the reference."""
    heads, T = parts.heads, len(stream.residual_TD)
    x_TD, dtype = stream.residual_TD, stream.residual_TD.dtype
    q_THK = torch.empty((T, heads.num_heads, heads.head_dim), dtype=dtype, device=x_TD.device)
    if T == 0:
        return q_THK
    finish = _arguments(parts, rows, pages, q_THK)
    size = heads.head_dim
    job = fused_product(parts.qkv, stream, parts.norm, block_n=size) if size & (size - 1) == 0 else None
    if job is not None:
        _launch_project(job, finish, parts, pages, rows)
        return q_THK
    qkv_TN = parts.qkv(normed_input(ops, stream, parts.norm)).contiguous()
    half = size // 2
    _finish[(triton.cdiv(T, FINISH_TOKENS), heads.num_heads + 2 * heads.num_kv_heads)](
        qkv_TN, T, *finish, **_constants(parts, pages, rows), BLOCK_H=max(16, triton.next_power_of_2(half)),
        BLOCK_T=FINISH_TOKENS,
    )
    return q_THK


def _launch_project(job: Product, finish: tuple[Any, ...], parts: AttentionParts, pages: KVPages, rows: RowMeta
                    ) -> None:
    total = parts.heads.num_heads + 2 * parts.heads.num_kv_heads
    groups = triton.cdiv(job.tokens, job.cut.block_t)
    _project[(total, job.cut.splits, groups)](
        *job.pointers(total * groups), job.tokens, *finish, job.held.num_in, job.held.stride, job.eps,
        **job.constants(), **_constants(parts, pages, rows),
    )


def _arguments(parts: AttentionParts, rows: RowMeta, pages: KVPages, q_THK: Tensor) -> tuple[Any, ...]:
    logn_T = rows.logn_T if _logn(parts, rows) else rows.cos_TK
    norms = [norm or Norm(rows.cos_TK, 0.0) for norm in (parts.q_norm, parts.k_norm)]
    return (
        rows.cos_TK.contiguous(), rows.sin_TK.contiguous(), logn_T, rows.writes_T[parts.group], norms[0].weight_D,
        norms[1].weight_D, q_THK, *planes(pages), norms[0].eps, norms[1].eps,
    )  # fmt: skip


def _constants(parts: AttentionParts, pages: KVPages, rows: RowMeta) -> dict[str, Any]:
    heads, kind = parts.heads, pages.kind.name
    return {
        "H": heads.num_heads, "G": heads.num_kv_heads, "HALF": heads.head_dim // 2, "CACHE": CODES[kind],
        "ROTATE": kind in ROTATED, "Q_NORM": parts.q_norm is not None, "K_NORM": parts.k_norm is not None,
        "LOGN": _logn(parts, rows),
    }  # fmt: skip


def _logn(parts: AttentionParts, rows: RowMeta) -> bool:
    return parts.logn and rows.logn_T is not None
