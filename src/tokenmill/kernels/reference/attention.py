"""Paged attention in plain torch: gather each row's context, then softmax(q k) v in fp32. Causal, but for tokens that
are said to see further (`RowMeta.ends_T`).

Shapes are the bucket's (no length is read on the host), so a decode step can be captured. H query heads share G kv
heads in runs of H / G. Rows with nothing in their context give numbers nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.meta import ChunkRow, RowMeta
from tokenmill.kernels.ops import AttentionFacts
from tokenmill.kv.contract import KVPages
from tokenmill.kv.layout import context_index


def attention(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, facts: AttentionFacts) -> Tensor:
    """Attention of every row over its own blocks. Out: like q_THK. Softmax in fp32.

    One-token rows go as one batch. Longer rows go one by one where the runner knows them on the host (`rows.chunks`),
    else all rows are padded to `rows.max_row_tokens`.
    """
    if rows.all_single:
        return _singles(q_THK, pages, rows, group, facts)
    if rows.chunks is None:
        return _padded(q_THK, pages, rows, group, facts)
    return _mixed(q_THK, pages, rows, group, facts)


def _singles(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, facts: AttentionFacts) -> Tensor:
    num_rows = min(len(q_THK), len(rows.totals_R))
    out_THK = torch.zeros_like(q_THK) if num_rows < len(q_THK) else torch.empty_like(q_THK)
    totals_R = rows.totals_R[:num_rows]
    index_RL = context_index(rows.tables[group][:num_rows], totals_R, pages.shape.block_tokens, rows.max_context)
    out_THK[:num_rows] = _attend(q_THK[:num_rows, None], pages, index_RL, totals_R[:, None] - 1, facts)[:, 0]
    return out_THK


def _mixed(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, facts: AttentionFacts) -> Tensor:
    """One-token rows as a batch, then each chunk over its own context."""
    assert rows.chunks is not None
    out_THK = torch.zeros_like(q_THK)
    singles = rows.chunks[0].row if rows.chunks else len(rows.totals_R)
    if singles:
        totals_R = rows.totals_R[:singles]
        index_RL = context_index(rows.tables[group][:singles], totals_R, pages.shape.block_tokens, rows.max_context)
        out_THK[:singles] = _attend(q_THK[:singles, None], pages, index_RL, totals_R[:, None] - 1, facts)[:, 0]
    for chunk in rows.chunks:
        span = slice(chunk.start, chunk.start + chunk.num_tokens)
        out_THK[span] = _chunk(q_THK[span], pages, rows, group, chunk, facts)
    return out_THK


def _chunk(
    q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, chunk: ChunkRow, facts: AttentionFacts
) -> Tensor:
    one = slice(chunk.row, chunk.row + 1)
    index_1L = context_index(rows.tables[group][one], rows.totals_R[one], pages.shape.block_tokens, chunk.context)
    span = slice(chunk.start, chunk.start + chunk.num_tokens)
    ends_1W = None if rows.ends_T is None else rows.ends_T[None, span]
    return _attend(q_THK[None], pages, index_1L, rows.positions_T[None, span], facts, ends_1W)[0]


def _padded(q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, facts: AttentionFacts) -> Tensor:
    """Every row padded to the bucket's longest: [R, W] places, the row's token or a repeat of its last."""
    starts_R, counts_R = rows.starts_R1[:-1].long(), (rows.starts_R1[1:] - rows.starts_R1[:-1]).long()
    within_W = torch.arange(rows.max_row_tokens, device=q_THK.device)
    tokens_RW = starts_R[:, None] + torch.minimum(within_W[None], (counts_R - 1).clamp(min=0)[:, None])
    tokens_RW = tokens_RW.clamp(max=len(q_THK) - 1)
    index_RL = context_index(rows.tables[group], rows.totals_R, pages.shape.block_tokens, rows.max_context)
    ends_RW = None if rows.ends_T is None else rows.ends_T.long()[tokens_RW]
    out_RWHK = _attend(q_THK[tokens_RW], pages, index_RL, rows.positions_T.long()[tokens_RW], facts, ends_RW)
    within_T = torch.arange(len(q_THK), device=q_THK.device) - starts_R[rows.rows_T.long()]
    return out_RWHK[rows.rows_T.long(), within_T.clamp(0, rows.max_row_tokens - 1)]


def _attend(
    q_RWHK: Tensor, pages: KVPages, index_RL: Tensor, positions_RW: Tensor, facts: AttentionFacts,
    ends_RW: Tensor | None = None,
) -> Tensor:
    """Queries [R, W, H, K] at positions [R, W] over contexts [R, L], each up to its end (None: itself). Out: like q,
    softmax and sums in fp32."""
    if facts.window_tokens is not None:
        index_RL = _skip_behind(index_RL, positions_RW, facts.window_tokens)
    k_RLGK, v_RLGK = pages.kind.gather(pages, index_RL)
    R, W, H, K = q_RWHK.shape
    G = k_RLGK.shape[2]
    q = q_RWHK.float().reshape(R, W, G, H // G, K)
    scores = torch.einsum("rwghk,rlgk->rghwl", q, k_RLGK) * facts.scale
    places_L = torch.arange(index_RL.shape[1], device=q.device)
    ahead_RWL = places_L - positions_RW[:, :, None]
    hidden_RWL = ahead_RWL > 0 if ends_RW is None else places_L > ends_RW[:, :, None]
    if facts.window_tokens is not None:
        hidden_RWL = hidden_RWL | (ahead_RWL <= -facts.window_tokens)
    scores = _vary(scores, ahead_RWL, facts).masked_fill(hidden_RWL[:, None, None], float("-inf"))
    weights = _softmax(scores, facts)
    return torch.einsum("rghwl,rlgk->rwghk", weights, v_RLGK).reshape(R, W, H, K).to(q_RWHK.dtype)


def _skip_behind(index_RL: Tensor, positions_RW: Tensor, window_tokens: int) -> Tensor:
    """Places behind the window of a row's first query point at that query: their blocks may be another row's by now,
    and a NaN among them would survive a mask."""
    first_R1 = positions_RW.amin(1, keepdim=True).long()
    own_R1 = index_RL.gather(1, first_R1)
    places_L = torch.arange(index_RL.shape[1], device=index_RL.device)
    return torch.where(places_L <= first_R1 - window_tokens, own_R1, index_RL)


def _vary(scores_RGHWL: Tensor, ahead_RWL: Tensor, facts: AttentionFacts) -> Tensor:
    """Soft cap c tanh(s / c), then ALiBi's slope times the key's distance ahead (at most 0)."""
    if facts.softcap is not None:
        scores_RGHWL = facts.softcap * torch.tanh(scores_RGHWL / facts.softcap)
    if facts.alibi_slopes_H is not None:
        slopes = facts.alibi_slopes_H.view(*scores_RGHWL.shape[1:3], 1, 1)
        scores_RGHWL = scores_RGHWL + slopes * ahead_RWL[:, None, None]
    return scores_RGHWL


def _softmax(scores_RGHWL: Tensor, facts: AttentionFacts) -> Tensor:
    """Over L; with sinks each head's own logit joins the sum and takes no value."""
    if facts.sinks_H is None:
        return scores_RGHWL.softmax(-1)
    sinks = facts.sinks_H.float().view(*scores_RGHWL.shape[1:3], 1, 1).expand(*scores_RGHWL.shape[:-1], 1)
    return torch.cat([scores_RGHWL, sinks], -1).softmax(-1)[..., :-1]
