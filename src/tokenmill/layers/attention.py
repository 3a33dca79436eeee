"""Grouped-query attention: how a checkpoint holds q, k, v and o, and the parts a block op runs.

D hidden, H query heads, G kv heads, K head dim; g = H / G query heads share a kv head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import AttentionFacts, AttentionParts, Heads, Norm, Ops
from tokenmill.kv.contract import KVPages
from tokenmill.layers.linear import Linear, Loader, Part, read_bias, read_part, split_part, split_rows, unit_span
from tokenmill.layers.reduce import reduce_with
from tokenmill.weights.contract import Source, Weight


@dataclass(frozen=True, slots=True)
class AttentionArch:
    """One layer's attention in numbers, of the whole model. Biases are what config.json promises.

    `window_tokens`: a query sees itself and that many tokens less one before it (None: all). `group`: the layer's KV
    group. `alibi`: linear biases by head instead of a rotation. `scale` on q k, None: head_dim ** -0.5. `softcap`
    c: scores s become c tanh(s / c).
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    logn: bool = False
    window_tokens: int | None = None
    group: int = 0
    alibi: bool = False
    scale: float | None = None
    softcap: float | None = None


class QKVNames(Protocol):
    """How a checkpoint stores q, k and v."""

    def shapes(self, a: AttentionArch) -> dict[str, tuple[int, int]]:
        """Linears by name within the layer, with their (N, M)."""
        ...

    def read(self, source: Source, prefix: str, a: AttentionArch) -> tuple[Part, ...]:
        """q, k and v, each (heads * K, D) in head order."""
        ...


@dataclass(frozen=True, slots=True)
class SeparateQKV:
    """Three linears, as Llama has them."""

    q: str
    k: str
    v: str

    def shapes(self, a: AttentionArch) -> dict[str, tuple[int, int]]:
        kv = (a.num_kv_heads * a.head_dim, a.hidden_size)
        return {self.q: (a.num_heads * a.head_dim, a.hidden_size), self.k: kv, self.v: kv}

    def read(self, source: Source, prefix: str, a: AttentionArch) -> tuple[Part, ...]:
        units = {self.q: a.num_heads, self.k: a.num_kv_heads, self.v: a.num_kv_heads}
        return tuple(
            read_part(source, prefix + name, shape, units[name], a.qkv_bias) for name, shape in self.shapes(a).items()
        )


@dataclass(frozen=True, slots=True)
class GroupedQKV:
    """One linear whose rows are grouped per kv head: g query heads, then k, then v, G times (InternLM2's wqkv)."""

    name: str

    def shapes(self, a: AttentionArch) -> dict[str, tuple[int, int]]:
        return {self.name: ((a.num_heads + 2 * a.num_kv_heads) * a.head_dim, a.hidden_size)}

    def read(self, source: Source, prefix: str, a: AttentionArch) -> tuple[Part, ...]:
        shape = self.shapes(a)[self.name]
        whole = read_part(source, prefix + self.name, shape, a.num_kv_heads)
        bias = read_bias(source, prefix + self.name, shape[0], a.qkv_bias)
        sizes = (a.num_heads // a.num_kv_heads * a.head_dim, a.head_dim, a.head_dim) * a.num_kv_heads
        weights = split_rows(whole.weight, sizes)
        biases = None if bias is None else torch.split(bias, list(sizes))
        return tuple(
            Part(
                _join(weights[place::3]),
                None if biases is None else torch.cat(biases[place::3]),
                a.num_heads if place == 0 else a.num_kv_heads,
            )
            for place in range(3)
        )


@dataclass(frozen=True, slots=True)
class PackedQKV:
    """One linear whose rows are all of q, then all of k, then all of v."""

    name: str

    def shapes(self, a: AttentionArch) -> dict[str, tuple[int, int]]:
        return {self.name: ((a.num_heads + 2 * a.num_kv_heads) * a.head_dim, a.hidden_size)}

    def read(self, source: Source, prefix: str, a: AttentionArch) -> tuple[Part, ...]:
        shape = self.shapes(a)[self.name]
        whole = read_part(source, prefix + self.name, shape, a.num_kv_heads, a.qkv_bias)
        heads = (a.num_heads, a.num_kv_heads, a.num_kv_heads)
        return split_part(whole, tuple(count * a.head_dim for count in heads), heads)


def _join(weights: tuple[Weight, ...]) -> Weight:
    return weights[0].join(0, weights[1:])


@dataclass(frozen=True, slots=True)
class AttentionNames:
    """Names within a layer. `post_norm`: of the norm on what attention adds. `sinks`: a logit a head."""

    norm: str
    qkv: QKVNames
    out: str
    q_norm: str = ""
    k_norm: str = ""
    post_norm: str = ""
    sinks: str = ""

    def linears(self, a: AttentionArch) -> dict[str, tuple[int, int]]:
        """Linears by name within the layer, with their (N, M)."""
        return {**self.qkv.shapes(a), self.out: (a.hidden_size, a.num_heads * a.head_dim)}

    def plain(self, a: AttentionArch) -> dict[str, tuple[int, ...]]:
        """Norms, sinks and promised biases by full name within the layer."""
        norms = {f"{name}.weight": (a.hidden_size,) for name in (self.norm, self.post_norm) if name}
        norms |= {f"{name}.weight": (a.head_dim,) for name in (self.q_norm, self.k_norm) if name}
        biased = self.qkv.shapes(a) if a.qkv_bias else {}
        biased |= {self.out: (a.hidden_size, 0)} if a.out_bias else {}
        biases = {f"{name}.bias": shape[:1] for name, shape in biased.items()}
        return {**norms, **biases, **({self.sinks: (a.num_heads,)} if self.sinks else {})}


@dataclass(frozen=True, slots=True)
class Gqa:
    """Grouped-query attention, as a block of a family. `qk_norm`: q and k heads are normed before rope."""

    qk_norm: bool = False

    def build(self, loader: Loader, names: AttentionNames, prefix: str, a: AttentionArch, eps: float) -> AttentionParts:
        out = (a.hidden_size, a.num_heads * a.head_dim)
        head_norms = {name: _head_norm(loader, prefix + name, a, eps) for name in (names.q_norm, names.k_norm) if name}
        return AttentionParts(
            norm=Norm(loader.vector(f"{prefix}{names.norm}.weight", a.hidden_size), eps),
            qkv=Linear(names.qkv.read(loader.source, prefix, a), "column", loader),
            out=Linear((read_part(loader.source, prefix + names.out, out, a.num_heads, a.out_bias),), "row", loader),
            heads=local_heads(a, loader),
            facts=_facts(a, loader, prefix + names.sinks if names.sinks else ""),
            reduce=reduce_with(loader, prefix + names.post_norm if names.post_norm else "", a.hidden_size, eps),
            group=a.group,
            q_norm=head_norms.get(names.q_norm) if self.qk_norm else None,
            k_norm=head_norms.get(names.k_norm) if self.qk_norm else None,
            logn=a.logn,
        )

    def run(
        self, ops: Ops, stream: Stream, parts: AttentionParts, following: Norm, rows: RowMeta, pages: KVPages
    ) -> Stream:
        q_THK = ops.attn_in(stream, parts, rows, pages)
        return ops.attn_out(stream, ops.attend(q_THK, parts, rows, pages), parts, following)


def _facts(a: AttentionArch, loader: Loader, sinks: str) -> AttentionFacts:
    """What attention must know of this rank's heads."""
    slopes_H, sinks_H = None, None
    if a.alibi:
        first, last = unit_span(a.num_heads, a.num_heads, loader.group)
        slopes_H = alibi_slopes(a.num_heads)[first:last].to(loader.device)
    if sinks:
        first, last = unit_span(a.num_heads, a.num_heads, loader.group)
        sinks_H = loader.vector(sinks, a.num_heads)[first:last].float()
    scale = a.head_dim**-0.5 if a.scale is None else a.scale
    return AttentionFacts(scale, a.window_tokens, a.softcap, slopes_H, sinks_H)


def alibi_slopes(num_heads: int) -> Tensor:
    """Slopes of ALiBi (arXiv 2108.12409), fp32 [H].

    For n = 2 ** k heads 2 ** (-8 i / n), i = 1..n; otherwise those of the largest such n below, and then every second
    one of twice that n.
    """
    n = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / n) for i in range(1, n + 1)]
    slopes += [2.0 ** (-8.0 * i / (2 * n)) for i in range(1, 2 * n + 1, 2)][: num_heads - n]
    return torch.tensor(slopes, dtype=torch.float32)


def _head_norm(loader: Loader, name: str, a: AttentionArch, eps: float) -> Norm:
    weight_K: Tensor = loader.vector(f"{name}.weight", a.head_dim)
    return Norm(weight_K, eps)


def local_heads(a: AttentionArch, loader: Loader) -> Heads:
    """This rank's heads."""
    spans = (unit_span(count, count, loader.group) for count in (a.num_heads, a.num_kv_heads))
    queries, kvs = (last - first for first, last in spans)
    return Heads(queries, kvs, a.head_dim)
