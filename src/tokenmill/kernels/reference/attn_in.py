"""Block op: from the residual to rotated queries, with K and V stored."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import AttentionParts, Primitives
from tokenmill.kv.contract import KVPages


def attn_in(ops: Primitives, stream: Stream, parts: AttentionParts, rows: RowMeta, pages: KVPages) -> Tensor:
    """Norm, q/k/v, head norms, rope, logn; K and V written. Out: q_THK."""
    heads, K = parts.heads, parts.heads.head_dim
    H, G = heads.num_heads, heads.num_kv_heads
    qkv = parts.qkv(ops.rms_norm(stream.residual_TD, parts.norm.weight_D, parts.norm.eps))
    qk_THK, v_TGK = torch.split(qkv.view(-1, H + 2 * G, K), [H + G, G], 1)
    if parts.q_norm is None and parts.k_norm is None:
        q_THK, k_TGK = torch.split(ops.rope(qk_THK, rows.cos_TK, rows.sin_TK), [H, G], 1)
    else:
        q_THK, k_TGK = torch.split(qk_THK, [H, G], 1)
        if parts.q_norm is not None:
            q_THK = ops.rms_norm(q_THK, parts.q_norm.weight_D, parts.q_norm.eps)
        if parts.k_norm is not None:
            k_TGK = ops.rms_norm(k_TGK, parts.k_norm.weight_D, parts.k_norm.eps)
        q_THK, k_TGK = (ops.rope(x, rows.cos_TK, rows.sin_TK) for x in (q_THK, k_TGK))
    ops.kv_write(pages, k_TGK, v_TGK, rows.writes_T[parts.group])
    if parts.logn and rows.logn_T is not None:
        q_THK = (q_THK * rows.logn_T[:, None, None]).to(q_THK.dtype)
    return q_THK
