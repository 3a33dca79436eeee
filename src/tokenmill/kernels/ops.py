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


class PreparedExperts(Protocol):
    """Linears of all experts: rows sorted by expert, expert e's rows end before `ends_E[e]` (int64, cumulative)."""

    def __call__(self, x_PM: Tensor, ends_E: Tensor) -> Tensor: ...


class PrepareExperts(Protocol):
    def __call__(self, weights: tuple[Weight, ...], biases: tuple[Tensor | None, ...], dtype: object
                 ) -> PreparedExperts: ...


@dataclass(frozen=True, slots=True)
class Routing:
    """How a token chooses its experts.

    score: of every expert, "softmax" over all or "sigmoid" of each. groups: experts in equal groups, of which the best
    `top_groups` remain, judged by their best `group_votes` scores. normalise: the chosen weights are made to sum to 1
    (their scores with the choice bias decide, without it they weigh). scale: times this at last.
    """

    top_k: int
    score: str = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_votes: int = 1


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
    cutoffs(x_RV fp32, top_k_R int32, top_p_R, min_p_R fp32) -> fp32 [R]: the least value that lives; -inf: all do.
    penalise(x_RV fp32, places_R int64, seen_SV bool, counts_SV int16, factors_R3 fp32) -> None: x changes; row r's own
        tables are at places_R[r].
    mask_rows(x_RV fp32, rows_M int64, bits_MB uint8) -> None: x changes.
    route(logits_TE, choice_bias_E | None, routing) -> weights_Tk fp32, experts_Tk int64.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    kv_write: Callable[[KVPages, Tensor, Tensor, Tensor], None]
    attention: Attention
    prepare_linear: PrepareLinear
    prepare_experts: PrepareExperts
    cutoffs: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    penalise: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    mask_rows: Callable[[Tensor, Tensor, Tensor], None]
    route: Callable[[Tensor, Tensor | None, Routing], tuple[Tensor, Tensor]]


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
class SharedParts:
    """The expert every token goes through; `gate_1D`: its result times sigmoid of this on the input."""

    gate_up: Prepared
    down: Prepared
    gate_1D: Tensor | None = None


@dataclass(frozen=True, slots=True)
class MoeParts:
    """One layer's mixture of experts, ready to run. router_ED fp32, and what is added to its logits or to its choice.

    `activation` is of a family with its own; None: silu of gate's half times up's.
    """

    norm: Norm
    router_ED: Tensor
    routing: Routing
    gate_up: PreparedExperts
    down: PreparedExperts
    reduce: Reduce
    router_bias_E: Tensor | None = None
    choice_bias_E: Tensor | None = None
    shared: SharedParts | None = None
    activation: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class MlaParts:
    """One layer's multi-head latent attention, ready to run. R latent channels, P rotated ones, K = R + P in the cache.

    `query` gives each head's plain and rotated channels (through a narrow vector and its norm where `narrow` is there),
    `latent` the latent and the shared rotated key. absorb_HCR takes plain query channels C into the latent's space,
    raise_HVR takes what attention found there to the head's V value channels.
    """

    norm: Norm
    query: Prepared
    latent: Prepared
    latent_norm: Norm
    absorb_HCR: Tensor
    raise_HVR: Tensor
    out: Prepared
    heads: Heads
    facts: AttentionFacts
    reduce: Reduce
    group: int = 0
    narrow: Prepared | None = None
    narrow_norm: Norm | None = None


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


class MlaIn(Protocol):
    def __call__(self, stream: Stream, parts: MlaParts, rows: RowMeta, pages: KVPages) -> Tensor:
        """Norm, query in the latent's space, rope (pairs 2i, 2i + 1); the latent is written. Out: q_THK, K = R + P."""
        ...


class MlaAttend(Protocol):
    def __call__(self, q_THK: Tensor, parts: MlaParts, rows: RowMeta, pages: KVPages) -> Tensor:
        """Attention over latent pages, raised to value channels. Out: [T, H * V]."""
        ...


class AttnOut(Protocol):
    def __call__(self, stream: Stream, y_TM: Tensor, parts: AttentionParts | MlaParts, following: Norm) -> Stream:
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


class MoeBlock(Protocol):
    def __call__(self, stream: Stream, parts: MoeParts, following: Norm) -> Stream:
        """Norm, routing, experts, shared expert, reduce, residual. `following` as in `AttnOut`."""
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
    mla_in: MlaIn
    mla_attend: MlaAttend
    moe_block: MoeBlock
    final_norm: FinalNorm
    head: Head
    backends: dict[str, str]
