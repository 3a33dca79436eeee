"""Seam D: the contract of every op, at two levels. `bind` chooses callables once, at model build.

Primitive ops are arithmetic on tensors; block ops are what layers call, composed from primitives in `reference/` and
overridden by a backend where it fuses them. A backend is a folder with one module per op, the same file and function
names as `reference/`. A missing op, or a case a backend does not take, falls to the composition, then to the reference,
logged once with the reason.

Accumulation is fp32 unless a docstring says otherwise. Shapes as in `kernels/meta.py`; F ffn width, N out, M in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tokenmill.kernels.meta import RowMeta
from tokenmill.kv.contract import KVPages
from tokenmill.weights.contract import Weight


class Prepared(Protocol):
    """A linear ready to run: `prepared(x_TM) -> y_TN`. `load` puts other numbers into the same storage."""

    def __call__(self, x_TM: Tensor) -> Tensor: ...

    def load(self, weight: Weight, bias: Tensor | None) -> None: ...


@dataclass(frozen=True, slots=True)
class AttentionFacts:
    """What attention must know beside tensors: scale, and later families' window, softcap, ALiBi slopes, sinks."""

    scale: float
    window_tokens: int | None = None
    softcap: float | None = None
    alibi_slopes_H: Tensor | None = None
    sinks_H: Tensor | None = None


class PrepareLinear(Protocol):
    def __call__(self, weight: Weight, bias: Tensor | None, dtype: object) -> Prepared: ...


class Attention(Protocol):
    def __call__(self, q_THK: Tensor, pages: KVPages, rows: RowMeta, group: int, facts: AttentionFacts) -> Tensor:
        """Causal attention of every row over its own blocks. Out: like q_THK. Softmax in fp32."""
        ...


@dataclass(frozen=True, slots=True)
class Ops:
    """The frozen table of primitives a model is built with.

    rms_norm(x_TD, weight_D, eps) -> TD: fp32 x * rsqrt(mean(x^2) + eps), cast to x's dtype, then times weight.
    rope(x_THK, cos_TK, sin_TK) -> THK: half rotation (pairs i, i + K / 2), in fp32, cast back.
    silu_mul(gate_up_T2F) -> TF: silu of the first half times the second.
    kv_write(pages, k_TGK, v_TGK, writes_T) -> None.
    """

    name: str
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    kv_write: Callable[[KVPages, Tensor, Tensor, Tensor], None]
    attention: Attention
    prepare_linear: PrepareLinear
