"""Block op on a CPU: as the reference, with a rotation in three calls instead of ten.

With cos and sin of both halves side by side, sin of the first one negative, x is turned into x cos + swapped(x) sin.
The two tables are made once a step, for all layers of a KV group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import AttentionParts, Primitives
from tokenmill.kernels.reference.attn_in import attn_in as reference
from tokenmill.kv.contract import KVPages


def attn_in(ops: Primitives, stream: Stream, parts: AttentionParts, rows: RowMeta, pages: KVPages) -> Tensor:
    """As the reference, whose are half types, head norms and LogN."""
    residual_TD = stream.residual_TD
    if residual_TD.dtype != torch.float32 or parts.q_norm or parts.k_norm or parts.logn:
        return reference(ops, stream, parts, rows, pages)
    K, H, G = parts.heads.head_dim, parts.heads.num_heads, parts.heads.num_kv_heads
    qkv = parts.qkv(ops.rms_norm(residual_TD, parts.norm.weight_D, parts.norm.eps)).view(-1, H + 2 * G, K)
    cos_T1K, sin_T1K = _tables(rows, parts.group)
    qk_THK = qkv[:, : H + G]
    qk_THK = torch.addcmul(qk_THK * cos_T1K, qk_THK.roll(K // 2, -1), sin_T1K)
    ops.kv_write(pages, qk_THK[:, H:], qkv[:, H + G :], rows.writes_T[parts.group])
    return qk_THK[:, :H]


def _tables(rows: RowMeta, group: int) -> tuple[Tensor, Tensor]:
    key = "cpu rotation", group
    if key not in rows.notes:
        cos_TK, sin_TK = rows.cos_TK, rows.sin_TK
        rows.notes[key] = torch.cat((cos_TK, cos_TK), -1)[:, None], torch.cat((-sin_TK, sin_TK), -1)[:, None]
    found: tuple[Tensor, Tensor] = rows.notes[key]
    return found
