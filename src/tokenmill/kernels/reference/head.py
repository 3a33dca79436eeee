"""Block op: logits."""

from __future__ import annotations

from torch import Tensor

from tokenmill.kernels.ops import HeadParts, Primitives


def head(ops: Primitives, hidden_RD: Tensor, parts: HeadParts) -> Tensor:
    """Logits fp32 [R, V], gathered over ranks."""
    return parts.gather(parts.linear(hidden_RD)).float()
