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

from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kv.contract import KVPages
from tokenmill.weights.contract import Weight

# ---------------------------------------------------------------- primitives


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
class Primitives:
    """Arithmetic on tensors.

    rms_norm(x_TD, weight_D, eps) -> TD: fp32 x * rsqrt(mean(x^2) + eps), cast to x's dtype, then times weight.
    rope(x_THK, cos_TK, sin_TK) -> THK: half rotation (pairs i, i + K / 2), in fp32, cast back.
    silu_mul(gate_up_T2F) -> TF: silu of the first half times the second.
    kv_write(pages, k_TGK, v_TGK, writes_T) -> None.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    kv_write: Callable[[KVPages, Tensor, Tensor, Tensor], None]
    attention: Attention
    prepare_linear: PrepareLinear


# ---------------------------------------------------------------- blocks

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Norm:
    weight_D: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Heads:
    """This rank's heads: H query heads and G kv heads of K channels."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """One layer's attention, ready to run. `qkv` gives q, k and v side by side; `group` indexes `RowMeta.tables`.

    `reduce` sums over ranks. `q_norm`, `k_norm` are over each head's channels, before rope. `logn`: q is multiplied by
    `RowMeta.logn_T`.
    """

    norm: Norm
    qkv: Prepared
    out: Prepared
    heads: Heads
    facts: AttentionFacts
    reduce: Reduce
    group: int = 0
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    logn: bool = False


@dataclass(frozen=True, slots=True)
class MlpParts:
    """One layer's gated MLP, ready to run. `gate_up` gives gate and up side by side."""

    norm: Norm
    gate_up: Prepared
    down: Prepared
    reduce: Reduce


@dataclass(frozen=True, slots=True)
class HeadParts:
    """The output head: this rank's rows of the vocabulary, and how ranks' rows come together."""

    linear: Prepared
    gather: Reduce


class AttnIn(Protocol):
    def __call__(self, stream: Stream, parts: AttentionParts, rows: RowMeta, pages: KVPages) -> Tensor:
        """Norm, q/k/v, head norms, rope, logn; K and V are written to their pages. Out: q_THK."""
        ...


class Attend(Protocol):
    def __call__(self, q_THK: Tensor, parts: AttentionParts, rows: RowMeta, pages: KVPages) -> Tensor:
        """Attention over the pages. Out: [T, H * K]."""
        ...


class AttnOut(Protocol):
    def __call__(self, stream: Stream, y_TM: Tensor, parts: AttentionParts, following: Norm) -> Stream:
        """Output projection, reduce, residual. `following` is the next norm, which a backend may apply already."""
        ...


class MlpIn(Protocol):
    def __call__(self, stream: Stream, parts: MlpParts) -> Tensor:
        """Norm, gate and up, activation. Out: [T, F]."""
        ...


class MlpOut(Protocol):
    def __call__(self, stream: Stream, y_TF: Tensor, parts: MlpParts, following: Norm) -> Stream:
        """Down projection, reduce, residual. `following` as in `AttnOut`."""
        ...


class FinalNorm(Protocol):
    def __call__(self, stream: Stream, norm: Norm) -> Tensor:
        """The normed residual [T, D] in the model's dtype, from the stream's carry where the backend left it there."""
        ...


class Head(Protocol):
    def __call__(self, hidden_RD: Tensor, parts: HeadParts) -> Tensor:
        """Logits fp32 [R, V] of normed hidden states."""
        ...


@dataclass(frozen=True, slots=True)
class Ops:
    """The frozen table a model is built with: primitives, and block ops over them. `backends`: op -> who serves it."""

    name: str
    primitives: Primitives
    attn_in: AttnIn
    attend: Attend
    attn_out: AttnOut
    mlp_in: MlpIn
    mlp_out: MlpOut
    final_norm: FinalNorm
    head: Head
    backends: dict[str, str]
