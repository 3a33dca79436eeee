"""Paged attention: the g query heads of a kv head as one tile, each token's context shared out over splits.

Every token is its own query, whatever its row: one kernel serves decode steps and chunks alike, reads lengths on the
device only, and so can be captured. A chunk's tokens read their common context once each, from the second-level cache;
a kernel that tiles a chunk's tokens would read it once (later).

Two passes: each split writes its unnormalised sum, its largest score and its sum of exponentials in fp32; the second
pass joins them. Places behind a token are never read, so nothing that lies there can spoil it.

T tokens, H query heads, G kv heads, g = H / G, K head dim, L places, S tokens per block, splits Z.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.meta import RowMeta
from tokenmill.kernels.ops import AttentionFacts
from tokenmill.kernels.reference.attention import attention as reference
from tokenmill.kernels.triton._kinds import CODES, load_heads, planes
from tokenmill.kv.contract import KVPages
from tokenmill.kv.rotate import rotate

BLOCK_L = 64
# tl.dot wants at least 16 rows.
LEAST_QUERIES = 16
# Programs that fill an H200 twice over.
WANTED_PROGRAMS = 264
MOST_SPLITS = 16


@triton.jit
def _attend(q_ptr, k_ptr, k_params_ptr, v_ptr, v_params_ptr, tables_ptr, rows_ptr, positions_ptr, sums_ptr, marks_ptr,
            scale, num_blocks, G: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
            KIND: tl.constexpr, SPLITS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
            BLOCK_L: tl.constexpr):
    token, g, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row = tl.load(rows_ptr + token).to(tl.int64)
    context = tl.load(positions_ptr + token) + 1
    share = tl.cdiv(tl.cdiv(context, SPLITS), BLOCK_L) * BLOCK_L
    start, end = split * share, tl.minimum((split + 1) * share, context)
    i, k = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K)
    heads_Q = token * G * GROUP + g * GROUP + i
    q_QK = tl.load(q_ptr + heads_Q[:, None] * K + k[None, :], mask=(i < GROUP)[:, None] & (k < K)[None, :], other=0.0)
    dtype = q_ptr.dtype.element_ty
    most_Q = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total_Q = tl.zeros([BLOCK_Q], tl.float32)
    sum_QK = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for first in range(start, end, BLOCK_L):
        place_L = first + tl.arange(0, BLOCK_L)
        seen_L = place_L < end
        block_L = tl.load(tables_ptr + row * num_blocks + place_L // S, mask=seen_L, other=0).to(tl.int64)
        head_L = (block_L * S + place_L % S) * G + g
        k_LK = load_heads(k_ptr, k_params_ptr, head_L, seen_L, KIND, K, BLOCK_K)
        v_LK = load_heads(v_ptr, v_params_ptr, head_L, seen_L, KIND, K, BLOCK_K)
        scores_QL = tl.dot(q_QK, tl.trans(k_LK.to(dtype)), input_precision="ieee") * scale
        scores_QL = tl.where(seen_L[None, :], scores_QL, float("-inf"))
        higher_Q = tl.maximum(most_Q, tl.max(scores_QL, 1))
        kept_Q = tl.exp(most_Q - higher_Q)
        weights_QL = tl.exp(scores_QL - higher_Q[:, None])
        total_Q = total_Q * kept_Q + tl.sum(weights_QL, 1)
        sum_QK = sum_QK * kept_Q[:, None] + tl.dot(weights_QL.to(dtype), v_LK.to(dtype), input_precision="ieee")
        most_Q = higher_Q
    # An empty split leaves -inf and zeros, which the second pass weighs with nothing.
    at_Q = heads_Q * SPLITS + split
    tl.store(sums_ptr + at_Q[:, None] * K + k[None, :], sum_QK, mask=(i < GROUP)[:, None] & (k < K)[None, :])
    tl.store(marks_ptr + at_Q * 2, most_Q, mask=i < GROUP)
    tl.store(marks_ptr + at_Q * 2 + 1, total_Q, mask=i < GROUP)


@triton.jit
def _join(sums_ptr, marks_ptr, out_ptr, K: tl.constexpr, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    z, k = tl.arange(0, SPLITS), tl.arange(0, BLOCK_K)
    most_Z = tl.load(marks_ptr + (head * SPLITS + z) * 2)
    weight_Z = tl.exp(most_Z - tl.max(most_Z, 0))
    total = tl.sum(weight_Z * tl.load(marks_ptr + (head * SPLITS + z) * 2 + 1), 0)
    inside = (k < K)[None, :]
    sum_ZK = tl.load(sums_ptr + (head * SPLITS + z)[:, None] * K + k[None, :], mask=inside, other=0.0)
    out_K = tl.sum(sum_ZK * weight_Z[:, None], 0) / total
    tl.store(out_ptr + head * K + k, out_K.to(out_ptr.dtype.element_ty), mask=k < K)


def attention(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, facts: AttentionFacts) -> Tensor:
    """As the reference, which also takes layers with a window, a soft cap, ALiBi or sinks, and the kinds not fused."""
    varied = (facts.window_tokens, facts.softcap, facts.alibi_slopes_H, facts.sinks_H)
    if pages.kind.name not in CODES or any(value is not None for value in varied):
        return reference(q_THK, pages, rows, group, facts)
    rotated = pages.kind.name == "int4"
    q = rotate(q_THK).to(q_THK.dtype) if rotated else q_THK.contiguous()
    out_THK = _run(q, pages, rows, group, facts.scale)
    return rotate(out_THK).to(q_THK.dtype) if rotated else out_THK


def _run(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, scale: float) -> Tensor:
    T, H, K = q_THK.shape
    G, S, table_RB = pages.shape.num_heads, pages.shape.block_tokens, rows.tables[group].contiguous()
    Z = num_splits(T * G, rows.max_context)
    sums_THZK = torch.empty((T, H, Z, K), dtype=torch.float32, device=q_THK.device)
    marks_THZ2 = torch.empty((T, H, Z, 2), dtype=torch.float32, device=q_THK.device)
    out_THK, block_K = torch.empty_like(q_THK), triton.next_power_of_2(K)
    block_Q = max(LEAST_QUERIES, triton.next_power_of_2(H // G))
    _attend[(T, G, Z)](
        q_THK, *planes(pages), table_RB, rows.rows_T, rows.positions_T, sums_THZK, marks_THZ2, scale, table_RB.shape[1],
        G, H // G, K, S, CODES[pages.kind.name], Z, block_Q, block_K, BLOCK_L,
    )
    _join[(T * H,)](sums_THZK, marks_THZ2, out_THK, K, Z, block_K)
    return out_THK


def num_splits(programs: int, max_context: int) -> int:
    """A power of two that fills the device, with at least two blocks of places a split. Bounds only, no lengths."""
    splits = 1
    while splits < MOST_SPLITS and programs * splits < WANTED_PROGRAMS and 4 * splits * BLOCK_L <= max_context:
        splits *= 2
    return splits
