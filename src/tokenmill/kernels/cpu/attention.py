"""Paged attention on a CPU: whole blocks are copied out of the pages, and torch's fused attention runs over them.

One-token rows go in bunches whose K and V fit a core's cache: larger copies are new memory each time, and the kernel's
handing out of it costs more than the attention. The g query heads that share a kv head go as g queries of one head, so
that K and V are never repeated.

A cache that is stored rotated is read as it is: queries are rotated before and the result after.

Rows of one length read no more than that. Otherwise what lies behind a row's end is read and masked, but a NaN there (a
row that failed, in a block given on) would survive the mask. A result that is not finite is therefore computed again by
the reference, which reads only the row's own tokens; that costs time where a row has failed, and nothing otherwise.

R rows, T tokens, L places of a context, H query heads, G kv heads, g = H / G, K head dim. Tensors are read on the host
freely: this is the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

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
    bunched = _bunched(rows, group, singles, pages.shape)
    if not chunks and len(bunched) == 1 and singles == len(q_THK):
        out_THK = _singles(q_THK, pages, bunched[0], facts.scale)
    else:
        out_THK = torch.zeros_like(q_THK)
        for bunch in bunched:
            span = slice(bunch.first, bunch.last)
            out_THK[span] = _singles(q_THK[span], pages, bunch, facts.scale)
    for chunk in chunks:
        span = slice(chunk.start, chunk.start + chunk.num_tokens)
        out_THK[span] = _chunk(q_THK[span], pages, rows, group, (chunk, facts.scale))
    if rotating:
        out_THK = rotating.turn(out_THK).to(given_THK.dtype)
    if not chunks and all(bunch.mask is None for bunch in bunched):
        return out_THK  # nothing was read but the rows' own tokens
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


@dataclass(frozen=True, slots=True)
class Bunch:
    """One-token rows `first` to `last` - 1, read up to `context` tokens. mask fp32 [R, 1, 1, L]; None where every row
    has them all."""

    first: int
    last: int
    context: int
    table_RB: Tensor
    mask: Tensor | None


def _bunched(rows: RowMeta, group: int, singles: int, shape: KVShape) -> list[Bunch]:
    """The same for every layer of a step that has these rows and this group, so that the first one's is kept."""
    key = "cpu bunches", group
    if key not in rows.notes:
        totals = rows.totals_R[:singles].tolist()
        rows.notes[key] = [_bunch(rows, group, totals, bounds, shape) for bounds in bunches(totals, shape)]
    found: list[Bunch] = rows.notes[key]
    return found


def _bunch(rows: RowMeta, group: int, totals: list[int], bounds: tuple[int, int, int], shape: KVShape) -> Bunch:
    first, last, context = bounds
    # Rows without context read one place that nobody looks at.
    context = max(context, 1)
    table_RB = rows.tables[group][first:last, : -(-context // shape.block_tokens)]
    mask = None
    if min(totals[first:last]) < context:
        seen_RL = torch.arange(context) < rows.totals_R[first:last].clamp(min=1)[:, None]
        mask = torch.zeros(seen_RL.shape).masked_fill_(~seen_RL, -math.inf)[:, None, None]
    return Bunch(first, last, context, table_RB, mask)


def _singles(q_RHK: Tensor, pages: KVPages, bunch: Bunch, scale: float) -> Tensor:
    R, H, K = q_RHK.shape
    k_RLGK, v_RLGK = _context(pages, bunch.table_RB)
    G = k_RLGK.shape[2]
    out = functional.scaled_dot_product_attention(
        q_RHK.float().view(R, G, H // G, K),
        k_RLGK[:, : bunch.context].transpose(1, 2),
        v_RLGK[:, : bunch.context].transpose(1, 2),
        attn_mask=bunch.mask,
        scale=scale,
    )
    return out.reshape(R, H, K)


def _chunk(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, sizes: tuple[ChunkRow, float]) -> Tensor:
    """One row's tokens over its context. The host's numbers are bounds; positions are what the device knows."""
    chunk, scale = sizes
    # A context of as many tokens as the chunk begins with it.
    whole = chunk.context == chunk.num_tokens
    positions_T = rows.positions_T[chunk.start : chunk.start + chunk.num_tokens]
    blocks = -(-chunk.context // pages.shape.block_tokens)
    table_1B = rows.tables[group][chunk.row : chunk.row + 1, :blocks]
    k_LGK, v_LGK = (x[0, : chunk.context] for x in _context(pages, table_1B))
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


def _context(pages: KVPages, table_RB: Tensor) -> tuple[Tensor, Tensor]:
    """K and V of whole blocks, [R, B * S, G, K] each."""
    if isinstance(pages.kind, Rotating):
        return pages.kind.read_turned(pages, table_RB)
    return pages.kind.read(pages, table_RB)
