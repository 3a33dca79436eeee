"""Paged attention: tiles of query heads that share a kv head, over the pages as they are stored.

Rows of one token: the g query heads of a kv head are a tile, each token's context is shared out over splits, and the
last split to end joins them. Longer rows: several tokens of a row are a tile, which reads their context once. In a
mixed step both kernels run, and each leaves the other's rows alone. Lengths are read on the device only, so that steps
can be captured. Places behind a tile's last token, or before its first one's window, are never read.

Codes are not scaled one by one: a score is scale_l (q . codes) + low_l sum(q), and a value's scale goes into its
weight. Heads are handled as two halves of K, because a byte of int4 holds a channel of each.

T tokens, H query heads, G kv heads, g = H / G, K head dim, L places, S tokens per block, Q rows of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.meta import RowMeta
from tokenmill.kernels.ops import AttentionFacts
from tokenmill.kernels.reference.attention import attention as reference
from tokenmill.kernels.triton._held import early
from tokenmill.kernels.triton._kinds import CODES, ROTATED, _load_codes, _rotate_rows, _rotate_sums, planes
from tokenmill.kernels.triton._launch import INTERPRETED, early_launch
from tokenmill.kv.contract import KVPages

BLOCK_L = 64
# Rows of a tile: what the matrix units take at least, and what a chunk's tile has at most.
LEAST_QUERIES, MOST_QUERIES = 16, 128
# Programs that fill an H200 twice over.
WANTED_PROGRAMS = 264
MOST_SPLITS = 32
LOG2E = 1.4426950408889634


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))


@triton.jit
def _vary(scores_QL, behind_QL, slope_Q, softcap, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr):
    """Soft cap c tanh(s / c), then ALiBi's slope times the key's distance."""
    if SOFTCAP:
        scores_QL = softcap * _tanh(scores_QL / softcap)
    if ALIBI:
        scores_QL -= slope_Q[:, None] * behind_QL.to(tl.float32)
    return scores_QL


@triton.jit
def _over(q1_QH, q2_QH, qsum_Q, position_Q, end_Q, slope_Q, k_ptr, k_params_ptr, v_ptr, v_params_ptr, table, g, first,
          last, oldest, end, scale, softcap, window, most_Q, total_Q, sum1_QH, sum2_QH, G: tl.constexpr,
          HALF: tl.constexpr, S: tl.constexpr, KIND: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr,
          SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, ASM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_L: tl.constexpr):
    """Adds places first..last; those outside oldest..end are not read. MASKED: not every query sees every place, but
    each up to end_Q."""
    dtype = q1_QH.dtype
    for start in range(first, last, BLOCK_L):
        place_L = start + tl.arange(0, BLOCK_L)
        seen_L = (place_L >= oldest) & (place_L < end)
        block_L = tl.load(table + place_L // S, mask=seen_L, other=0).to(tl.int64)
        head_L = (block_L * S + place_L % S) * G + g
        k1_LH, k2_LH, k_scale_L, k_low_L = _load_codes(k_ptr, k_params_ptr, head_L, seen_L, dtype, KIND, HALF, ASM,
                                                       BLOCK_H)
        scores_QL = tl.dot(q1_QH, tl.trans(k1_LH), input_precision="ieee")
        scores_QL = tl.dot(q2_QH, tl.trans(k2_LH), scores_QL, input_precision="ieee")
        if KIND != 0:
            scores_QL *= k_scale_L[None, :]
        if KIND == 1 or KIND == 2:
            scores_QL += qsum_Q[:, None] * k_low_L[None, :]
        behind_QL = position_Q[:, None] - place_L[None, :]
        scores_QL = _vary(scores_QL * scale, behind_QL, slope_Q, softcap, SOFTCAP, ALIBI) * 1.4426950408889634
        if MASKED:
            visible_QL = (place_L[None, :] <= end_Q[:, None]) & seen_L[None, :]
            if WINDOW:
                visible_QL = visible_QL & (behind_QL < window)
            scores_QL = tl.where(visible_QL, scores_QL, float("-inf"))
        higher_Q = tl.maximum(most_Q, tl.max(scores_QL, 1))
        # Nothing seen yet: any finite number does instead of -inf.
        base_Q = tl.where(higher_Q == float("-inf"), 0.0, higher_Q)
        kept_Q = tl.exp2(most_Q - base_Q)
        weights_QL = tl.exp2(scores_QL - base_Q[:, None])
        total_Q = total_Q * kept_Q + tl.sum(weights_QL, 1)
        sum1_QH, sum2_QH = sum1_QH * kept_Q[:, None], sum2_QH * kept_Q[:, None]
        v1_LH, v2_LH, v_scale_L, v_low_L = _load_codes(v_ptr, v_params_ptr, head_L, seen_L, dtype, KIND, HALF, ASM,
                                                       BLOCK_H)
        if KIND == 0:
            weights_QL = weights_QL.to(dtype)
            sum1_QH = tl.dot(weights_QL, v1_LH, sum1_QH, input_precision="ieee")
            sum2_QH = tl.dot(weights_QL, v2_LH, sum2_QH, input_precision="ieee")
        else:
            if KIND != 3:
                lows_Q1 = tl.sum(weights_QL * v_low_L[None, :], 1)[:, None]
                sum1_QH, sum2_QH = sum1_QH + lows_Q1, sum2_QH + lows_Q1
            # Lifted out of fp16's smallest numbers; no scale is so large that this overflows.
            LIFT: tl.constexpr = 4.0 if KIND == 2 else 64.0
            lifted_QL = (weights_QL * (v_scale_L * LIFT)[None, :]).to(dtype)
            sum1_QH += tl.dot(lifted_QL, v1_LH, input_precision="ieee") * (1.0 / LIFT)
            sum2_QH += tl.dot(lifted_QL, v2_LH, input_precision="ieee") * (1.0 / LIFT)
        most_Q = higher_Q
    return most_Q, total_Q, sum1_QH, sum2_QH


@triton.jit
def _row_of(starts_ptr, tile, num_rows, steps, TOKENS: tl.constexpr):
    """The row a tile belongs to: row r's tiles begin at starts[r] // TOKENS + r. Bisection, no host."""
    low, high = tile * 0, tile * 0 + num_rows
    for _ in range(steps):
        middle = (low + high) // 2
        below = (tl.load(starts_ptr + middle) // TOKENS + middle <= tile) & (middle < num_rows)
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    return low


# What differs from step to step must not be compiled for: that would happen while requests wait.
@triton.jit(
    do_not_specialize=("window", "num_blocks", "num_rows", "steps", "splits"),
    do_not_specialize_on_alignment=("rows_ptr", "starts_ptr", "ends_ptr"),
)
def _attend(q_ptr, k_ptr, k_params_ptr, v_ptr, v_params_ptr, tables_ptr, rows_ptr, positions_ptr, starts_ptr,
            ends_ptr, slopes_ptr, sinks_ptr, out_ptr, sums_ptr, marks_ptr, counters_ptr, scale, softcap, window,
            num_blocks, num_rows, steps, splits, G: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr,
            S: tl.constexpr, KIND: tl.constexpr, ROTATE: tl.constexpr, CHUNKS: tl.constexpr, MIXED: tl.constexpr,
            AHEAD: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
            SINKS: tl.constexpr, ASM: tl.constexpr, EARLY: tl.constexpr, SPLIT: tl.constexpr, TOKENS: tl.constexpr,
            BLOCK_G: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_L: tl.constexpr):
    """CHUNKS: tiles of rows longer than one token, else single tokens (MIXED: only of rows of one). AHEAD: each token
    sees up to its entry of `ends`, else up to itself."""
    HALF: tl.constexpr = K // 2
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    tile, g, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if CHUNKS:
        row = _row_of(starts_ptr, tile, num_rows, steps, TOKENS)
        start = tl.load(starts_ptr + row)
        count = tl.load(starts_ptr + row + 1) - start
        first_token = start + (tile - (start // TOKENS + row)) * TOKENS
        wanted = tl.minimum(start + count - first_token, TOKENS)
        wanted = tl.where(count > 1, wanted, 0)
    else:
        first_token = tile
        row = tl.load(rows_ptr + first_token)
        wanted = first_token * 0 + 1
        if MIXED:
            wanted = (tl.load(starts_ptr + row + 1) - tl.load(starts_ptr + row) <= 1).to(tl.int32)
    if wanted > 0:
        i, h = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_H)
        token_Q, group_Q = first_token + i // BLOCK_G, i % BLOCK_G
        inside_Q = (i // BLOCK_G < wanted) & (group_Q < GROUP)
        head_Q = g * GROUP + group_Q
        inside_QH = inside_Q[:, None] & (h < HALF)[None, :]
        at_QH = (token_Q[:, None].to(tl.int64) * (G * GROUP) + head_Q[:, None]) * K + h[None, :]
        q1_QH = tl.load(q_ptr + at_QH, mask=inside_QH, other=0.0)
        q2_QH = tl.load(q_ptr + at_QH + HALF, mask=inside_QH, other=0.0)
        dtype = q_ptr.dtype.element_ty
        if ROTATE:
            q1_QH, q2_QH = _rotate_rows(q1_QH, q2_QH, HALF)
            q1_QH, q2_QH = q1_QH.to(dtype), q2_QH.to(dtype)
        qsum_Q = tl.sum(q1_QH.to(tl.float32), 1) + tl.sum(q2_QH.to(tl.float32), 1)
        earliest = tl.load(positions_ptr + first_token)
        position_Q = earliest + i // BLOCK_G
        context = earliest + wanted
        end_Q = position_Q
        if AHEAD:
            end_Q = tl.load(ends_ptr + token_Q, mask=inside_Q, other=0)
            context = tl.max(end_Q) + 1
        slope_Q = position_Q.to(tl.float32)
        if ALIBI:
            slope_Q = tl.load(slopes_ptr + head_Q, mask=inside_Q, other=0.0).to(tl.float32)
        oldest = tl.maximum(earliest - window + 1, 0) if WINDOW else earliest * 0
        floor = oldest // BLOCK_L * BLOCK_L
        share = tl.cdiv(tl.cdiv(context - floor, splits), BLOCK_L) * BLOCK_L
        begin = floor + split * share
        end = tl.minimum(begin + share, context)
        # Up to here every query of the tile sees every place; with a window or in one block, mask all.
        clear = tl.minimum((earliest + 1) // BLOCK_L * BLOCK_L, end) // BLOCK_L * BLOCK_L
        clear = begin if WINDOW else tl.maximum(clear, begin)
        most_Q = tl.full([BLOCK_Q], float("-inf"), tl.float32)
        total_Q = tl.zeros([BLOCK_Q], tl.float32)
        sum1_QH = tl.zeros([BLOCK_Q, BLOCK_H], tl.float32)
        sum2_QH = tl.zeros([BLOCK_Q, BLOCK_H], tl.float32)
        table = tables_ptr + row.to(tl.int64) * num_blocks
        most_Q, total_Q, sum1_QH, sum2_QH = _over(
            q1_QH, q2_QH, qsum_Q, position_Q, end_Q, slope_Q, k_ptr, k_params_ptr, v_ptr, v_params_ptr, table, g,
            begin, clear, oldest, end, scale, softcap, window, most_Q, total_Q, sum1_QH, sum2_QH, G, HALF, S, KIND,
            False, WINDOW, SOFTCAP, ALIBI, ASM, BLOCK_H, BLOCK_L)
        most_Q, total_Q, sum1_QH, sum2_QH = _over(
            q1_QH, q2_QH, qsum_Q, position_Q, end_Q, slope_Q, k_ptr, k_params_ptr, v_ptr, v_params_ptr, table, g,
            clear, end, oldest, end, scale, softcap, window, most_Q, total_Q, sum1_QH, sum2_QH, G, HALF, S, KIND,
            True, WINDOW, SOFTCAP, ALIBI, ASM, BLOCK_H, BLOCK_L)
        mine = split >= 0
        if SPLIT:
            mark_Q = (token_Q.to(tl.int64) * (G * GROUP) + head_Q) * splits
            parts_QH = sums_ptr + mark_Q[:, None] * K + h[None, :]
            tl.store(parts_QH + split * K, sum1_QH, mask=inside_QH)
            tl.store(parts_QH + split * K + HALF, sum2_QH, mask=inside_QH)
            tl.store(marks_ptr + (mark_Q + split) * 2, most_Q, mask=inside_Q)
            tl.store(marks_ptr + (mark_Q + split) * 2 + 1, total_Q, mask=inside_Q)
            # All of it is written before one thread says so, to the whole device.
            tl.debug_barrier()
            mine = tl.atomic_add(counters_ptr + first_token * G + g, 1) == splits - 1
            if mine:
                most_Q = tl.full([BLOCK_Q], float("-inf"), tl.float32)
                for z in range(splits):
                    its_Q = tl.load(marks_ptr + (mark_Q + z) * 2, mask=inside_Q, other=0.0, cache_modifier=".cg")
                    most_Q = tl.maximum(most_Q, its_Q)
                total_Q = tl.zeros([BLOCK_Q], tl.float32)
                sum1_QH = tl.zeros([BLOCK_Q, BLOCK_H], tl.float32)
                sum2_QH = tl.zeros([BLOCK_Q, BLOCK_H], tl.float32)
                for z in range(splits):
                    at_Q = marks_ptr + (mark_Q + z) * 2
                    part_Q = tl.exp2(tl.load(at_Q, mask=inside_Q, other=0.0, cache_modifier=".cg") - most_Q)
                    total_Q += part_Q * tl.load(at_Q + 1, mask=inside_Q, other=1.0, cache_modifier=".cg")
                    sum1_QH += part_Q[:, None] * tl.load(parts_QH + z * K, mask=inside_QH, other=0.0,
                                                         cache_modifier=".cg")
                    sum2_QH += part_Q[:, None] * tl.load(parts_QH + z * K + HALF, mask=inside_QH, other=0.0,
                                                         cache_modifier=".cg")
                tl.store(counters_ptr + first_token * G + g, 0)
        if mine:
            if SINKS:
                sink_Q = tl.load(sinks_ptr + head_Q, mask=inside_Q, other=0.0).to(tl.float32)
                total_Q += tl.exp2(sink_Q * 1.4426950408889634 - most_Q)
            sum1_QH, sum2_QH = sum1_QH / total_Q[:, None], sum2_QH / total_Q[:, None]
            if ROTATE:
                sum1_QH, sum2_QH = _rotate_sums(sum1_QH, sum2_QH, HALF, dtype)
            tl.store(out_ptr + at_QH, sum1_QH.to(dtype), mask=inside_QH)
            tl.store(out_ptr + at_QH + HALF, sum2_QH.to(dtype), mask=inside_QH)


def attention(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, facts: AttentionFacts) -> Tensor:
    """As the reference."""
    if pages.kind.name not in CODES:
        return reference(q_THK, pages, rows, group, facts)
    q_THK = q_THK.contiguous()
    out_THK = torch.empty_like(q_THK)
    if len(q_THK) == 0:
        return out_THK
    call = _Call(q_THK, out_THK, pages, rows, group, facts)
    call.singles(mixed=not rows.all_single)
    if not rows.all_single:
        call.chunks()
    return out_THK


_counters: dict[tuple[torch.device, int], Tensor] = {}


def counters(device: torch.device, size: int) -> Tensor:
    """Zeros that every kernel leaves as zeros. Kept for good, because captured graphs point to them."""
    key = device, triton.next_power_of_2(max(size, 1 << 14))
    if key not in _counters:
        _counters[key] = torch.zeros(key[1], dtype=torch.int32, device=device)
    return _counters[key]


class _Call:
    """One call's arguments, for up to two kernels."""

    def __init__(
        self, q_THK: Tensor, out_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, facts: AttentionFacts
    ):
        self.q, self.out, self.pages, self.rows, self.facts = q_THK, out_THK, pages, rows, facts
        self.table_RB = rows.tables[group].contiguous()

    def singles(self, mixed: bool) -> None:
        # Behind the rows' own tokens a bucket may have more: single rows come first, a token each.
        T = min(len(self.q), len(self.rows.totals_R)) if mixed else len(self.q)
        G, H = self.pages.shape.num_heads, self.q.shape[1]
        Z = num_splits(T * G, self.rows.max_context)
        block_G = triton.next_power_of_2(H // G)
        self._launch((T, G, Z), Z, 1, max(LEAST_QUERIES, block_G), CHUNKS=False, MIXED=mixed)

    def chunks(self) -> None:
        T, G, H = len(self.q), self.pages.shape.num_heads, self.q.shape[1]
        queries = LEAST_QUERIES if self.exact else MOST_QUERIES if self.q.shape[2] <= 128 else MOST_QUERIES // 2
        tokens = chunk_tokens(H // G, self.rows.max_row_tokens, queries)
        grid = (T // tokens + len(self.rows.totals_R), G, 1)
        block_G = triton.next_power_of_2(H // G)
        self._launch(grid, 1, tokens, max(LEAST_QUERIES, tokens * block_G), CHUNKS=True, MIXED=True)

    @property
    def exact(self) -> bool:
        """fp32 products are unrolled multiplications: a large tile of them takes minutes to compile."""
        return self.q.dtype == torch.float32

    def _launch(self, grid: tuple[int, int, int], splits: int, tokens: int, block_q: int, **which: bool) -> None:
        q, rows, facts, K = self.q, self.rows, self.facts, self.q.shape[2]
        H, G, S = q.shape[1], self.pages.shape.num_heads, self.pages.shape.block_tokens
        scratch = torch.empty((grid[0] * H * splits, K + 2) if splits > 1 else 1, dtype=torch.float32, device=q.device)
        sums, marks = scratch.view(-1), scratch.view(-1)[grid[0] * H * splits * K :] if splits > 1 else scratch
        _attend[grid](
            q, *planes(self.pages), self.table_RB, rows.rows_T, rows.positions_T, rows.starts_R1,
            q if rows.ends_T is None else rows.ends_T,
            q if facts.alibi_slopes_H is None else facts.alibi_slopes_H, q if facts.sinks_H is None else facts.sinks_H,
            self.out, sums, marks, counters(q.device, grid[0] * G), facts.scale, facts.softcap or 1.0,
            facts.window_tokens or 0, self.table_RB.shape[1], len(rows.totals_R), len(rows.totals_R).bit_length() + 1,
            splits, G, H // G, K, S, SPLIT=splits > 1, TOKENS=tokens, BLOCK_Q=block_q, **which, **self._constants(),
            AHEAD=which["CHUNKS"] and rows.ends_T is not None,
            num_warps=8 if block_q >= 128 else 4, num_stages=3 if K <= 128 else 2,
        )  # fmt: skip

    def _constants(self) -> dict[str, Any]:
        kind, facts, H, K = self.pages.kind.name, self.facts, self.q.shape[1], self.q.shape[2]
        return {
            "KIND": CODES[kind], "ROTATE": kind in ROTATED, "WINDOW": facts.window_tokens is not None,
            "SOFTCAP": facts.softcap is not None, "ALIBI": facts.alibi_slopes_H is not None,
            "SINKS": facts.sinks_H is not None,
            "EARLY": early() > 0, **early_launch(early()), "ASM": not INTERPRETED and self.q.dtype != torch.float32,
            "BLOCK_G": triton.next_power_of_2(H // self.pages.shape.num_heads),
            "BLOCK_H": max(16, triton.next_power_of_2(K // 2)), "BLOCK_L": BLOCK_L // 2 if self.exact else BLOCK_L,
        }  # fmt: skip


def chunk_tokens(group: int, max_row_tokens: int, queries: int) -> int:
    """Tokens of a chunk's tile: as many as `queries` hold, or as the narrow side does where no chunk has more.

    Two sizes only: each is a kernel that has to be compiled.
    """
    heads: int = triton.next_power_of_2(group)
    most, least = max(1, queries // heads), max(1, LEAST_QUERIES // heads)
    return least if max_row_tokens <= least else most


def num_splits(programs: int, max_context: int) -> int:
    """A power of two that fills the device, with at least two blocks of places a split. Bounds only, no lengths."""
    splits = 1
    while splits < MOST_SPLITS and programs * splits < WANTED_PROGRAMS and 4 * splits * BLOCK_L <= max_context:
        splits *= 2
    return splits
