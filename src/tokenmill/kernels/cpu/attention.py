"""Paged attention on a CPU: whole blocks are copied out of the pages, and torch's fused attention runs over them.

One-token rows go in bunches whose K and V fit a core's cache: larger copies are new memory each time, and the kernel's
handing out of it costs more than the attention. The g query heads that share a kv head go as g queries of one head, so
that K and V are never repeated.

A cache that is stored rotated is read as it is: queries are rotated before and the result after.

Copying whole blocks brings in what lies behind a row's end: it is masked, but a NaN there (a row that failed, in a
block given on) would survive the mask. A result that is not finite is therefore computed again by the reference, which
reads only the row's own tokens; that costs time where a row has failed, and nothing otherwise.

R rows, T tokens, L places of a context, H query heads, G kv heads, g = H / G, K head dim. Tensors are read on the host
freely: this is the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.kernels.meta import ChunkRow, RowMeta
from tokenmill.kernels.ops import AttentionFacts
from tokenmill.kernels.reference.attention import attention as reference
from tokenmill.kv.contract import KVPages, KVShape, Rotating

# K and V of a bunch in fp32: measured best near 1 MiB with a second-level cache of 2 MiB.
BUNCH_BYTES = 1 << 20


def attention(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, facts: AttentionFacts) -> Tensor:
    """As the reference. Rows whose lengths the host was not told (graph buckets) are the reference's, and so are layers
    with a window, a soft cap, ALiBi or sinks, and steps in which tokens see ahead."""
    varied = (facts.window_tokens, facts.softcap, facts.alibi_slopes_H, facts.sinks_H, rows.ends_T)
    if (rows.chunks is None and not rows.all_single) or any(value is not None for value in varied):
        return reference(q_THK, pages, rows, group, facts)
    chunks = rows.chunks or ()
    singles = chunks[0].row if chunks else min(len(q_THK), len(rows.totals_R))
    rotating = pages.kind if isinstance(pages.kind, Rotating) else None
    given_THK = q_THK
    if rotating:
        q_THK = rotating.turn(q_THK)
    out_THK = torch.zeros_like(q_THK)
    for first, last, context in bunches(rows.totals_R[:singles].tolist(), pages.shape):
        table_RB, totals_R = rows.tables[group][first:last], rows.totals_R[first:last]
        out_THK[first:last] = _singles(q_THK[first:last], pages, table_RB, totals_R, (context, facts.scale))
    for chunk in chunks:
        span = slice(chunk.start, chunk.start + chunk.num_tokens)
        out_THK[span] = _chunk(q_THK[span], pages, rows, group, (chunk, facts.scale))
    if rotating:
        out_THK = rotating.turn(out_THK).to(given_THK.dtype)
    # One number of the whole tells whether any is not finite (an overflow of the sum only costs a second look).
    return out_THK if math.isfinite(out_THK.sum().item()) else reference(given_THK, pages, rows, group, facts)


def bunches(totals: list[int], shape: KVShape) -> Iterator[tuple[int, int, int]]:
    """Runs of rows (first, last + 1, longest context) whose padded K and V stay within BUNCH_BYTES."""
    room_tokens = BUNCH_BYTES // (2 * 4 * shape.num_heads * shape.head_dim)
    first, longest = 0, 0
    for row, total in enumerate(totals):
        padded = max(longest, total)
        if row > first and padded * (row + 1 - first) > room_tokens:
            yield first, row, longest
            first, padded = row, total
        longest = padded
    if first < len(totals):
        yield first, len(totals), longest


def _singles(
    q_RHK: Tensor, pages: KVPages, table_RB: Tensor, totals_R: Tensor, sizes: tuple[int, float]
) -> Tensor:
    context, scale = sizes
    R, H, K = q_RHK.shape
    k_RLGK, v_RLGK = _context(pages, table_RB, context)
    L, G = k_RLGK.shape[1:3]
    seen_RL = torch.arange(L) < totals_R.clamp(min=1)[:, None]
    out = functional.scaled_dot_product_attention(
        q_RHK.float().view(R, G, H // G, K),
        k_RLGK.transpose(1, 2),
        v_RLGK.transpose(1, 2),
        attn_mask=seen_RL[:, None, None],
        scale=scale,
    )
    return out.reshape(R, H, K)


def _chunk(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, sizes: tuple[ChunkRow, float]) -> Tensor:
    """One row's tokens over its context. The host's numbers are bounds; positions are what the device knows."""
    chunk, scale = sizes
    # A context of as many tokens as the chunk begins with it.
    whole = chunk.context == chunk.num_tokens
    positions_T = rows.positions_T[chunk.start : chunk.start + chunk.num_tokens]
    table_1B = rows.tables[group][chunk.row : chunk.row + 1]
    k_LGK, v_LGK = (x[0, : chunk.context] for x in _context(pages, table_1B, chunk.context))
    out_HTK = functional.scaled_dot_product_attention(
        q_THK.float().transpose(0, 1)[None],
        k_LGK.transpose(0, 1)[None],
        v_LGK.transpose(0, 1)[None],
        attn_mask=None if whole else torch.arange(chunk.context) <= positions_T[:, None],
        is_causal=whole,
        scale=scale,
        enable_gqa=True,
    )[0]
    return out_HTK.transpose(0, 1)


def _context(pages: KVPages, table_RB: Tensor, context: int) -> tuple[Tensor, Tensor]:
    blocks = max(1, -(-context // pages.shape.block_tokens))
    if isinstance(pages.kind, Rotating):
        return pages.kind.read_turned(pages, table_RB[:, :blocks])
    return pages.kind.read(pages, table_RB[:, :blocks])
