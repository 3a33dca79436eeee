"""Block op: attention over the pages."""

from __future__ import annotations

from torch import Tensor

from tokenmill.kernels.meta import RowMeta
from tokenmill.kernels.ops import AttentionParts, Primitives
from tokenmill.kv.contract import KVPages


def attend(ops: Primitives, q_THK: Tensor, parts: AttentionParts, rows: RowMeta, pages: KVPages) -> Tensor:
    """Out: [T, H * K]."""
    return ops.attention(q_THK, pages, rows, parts.group, parts.facts).flatten(1)
