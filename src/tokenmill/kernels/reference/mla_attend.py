"""Block op: attention over latent pages."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.meta import RowMeta
from tokenmill.kernels.ops import MlaParts, Primitives
from tokenmill.kv.contract import KVPages


def mla_attend(ops: Primitives, q_THK: Tensor, parts: MlaParts, rows: RowMeta, pages: KVPages) -> Tensor:
    """Out: [T, H * V]. The latent is its own value: what attention finds in its R channels is raised by each head."""
    R = parts.raise_HVR.shape[-1]
    found_THR = ops.attention(q_THK, pages, rows, parts.group, parts.facts)[..., :R]
    return torch.einsum("thr,hvr->thv", found_THR, parts.raise_HVR).flatten(1)
