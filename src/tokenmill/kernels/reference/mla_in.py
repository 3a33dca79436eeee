"""Block op: from the residual to queries in the latent's space, with the latent stored.

Score of a head: q_plain (W_k c) + q_rot k_rot = (W_k^T q_plain) c + q_rot k_rot, so that the cache holds one latent c
and one rotated key a token, whatever the number of heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import MlaParts, Primitives
from tokenmill.kv.contract import KVPages


def mla_in(ops: Primitives, stream: Stream, parts: MlaParts, rows: RowMeta, pages: KVPages) -> Tensor:
    """Out: q_THK; K = R latent channels and then P rotated ones."""
    H, C, R = parts.absorb_HCR.shape
    x_TD = ops.rms_norm(stream.residual_TD, parts.norm.weight_D, parts.norm.eps)
    q_THX = parts.query(_narrowed(ops, x_TD, parts)).view(len(x_TD), H, -1)
    plain_THC, turned_THP = torch.split(q_THX, [C, q_THX.shape[-1] - C], -1)
    latent_TK = parts.latent(x_TD)
    latent_TR, key_TP = torch.split(latent_TK, [R, latent_TK.shape[-1] - R], -1)
    latent_TR = ops.rms_norm(latent_TR, parts.latent_norm.weight_D, parts.latent_norm.eps)
    turned_THP, key_T1P = (
        ops.rope(_apart(x), rows.cos_TK, rows.sin_TK) for x in (turned_THP, key_TP[:, None])
    )
    k_T1K = torch.cat((latent_TR[:, None], key_T1P), -1)
    ops.kv_write(pages, k_T1K, k_T1K, rows.writes_T[parts.group])
    absorbed_THR = torch.einsum("thc,hcr->thr", plain_THC, parts.absorb_HCR)
    return torch.cat((absorbed_THR, turned_THP), -1)


def _narrowed(ops: Primitives, x_TD: Tensor, parts: MlaParts) -> Tensor:
    if parts.narrow is None or parts.narrow_norm is None:
        return x_TD
    return ops.rms_norm(parts.narrow(x_TD), parts.narrow_norm.weight_D, parts.narrow_norm.eps)


def _apart(x: Tensor) -> Tensor:
    """Pairs (2i, 2i + 1) as pairs (i, i + P / 2): queries and keys alike, so that their products stay."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), -1)
