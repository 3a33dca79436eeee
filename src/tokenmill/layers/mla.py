"""Multi-head latent attention (DeepSeek-V2, V3): how a checkpoint holds it, and the parts a block op runs.

D hidden, H heads, C plain and P rotated channels of a query head, V value channels, R latent channels, L of the narrow
vector that queries come from where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import AttentionFacts, Heads, MlaParts, Norm, Ops
from tokenmill.kv.contract import KVPages
from tokenmill.layers.linear import Linear, Loader, read_part, shard, unit_span


@dataclass(frozen=True, slots=True)
class MlaArch:
    """One layer's attention in numbers, of the whole model. `scale` is on q k. `narrow` 0: queries come from D."""

    hidden_size: int
    num_heads: int
    narrow: int
    latent: int
    plain_dim: int
    rotated_dim: int
    value_dim: int
    scale: float
    bias: bool = False
    logn: bool = False
    window_tokens: int | None = None
    group: int = 0

    @property
    def num_kv_heads(self) -> int:
        """As the cache sees it: one vector a token."""
        return 1

    @property
    def head_dim(self) -> int:
        """As the cache sees it."""
        return self.latent + self.rotated_dim

    @property
    def query_dim(self) -> int:
        return self.plain_dim + self.rotated_dim


@dataclass(frozen=True, slots=True)
class MlaNames:
    """Names within a layer. `query` stands for `narrow`, its norm and `widen` where queries come from D at once."""

    norm: str = "input_layernorm"
    query: str = "self_attn.q_proj"
    narrow: str = "self_attn.q_a_proj"
    narrow_norm: str = "self_attn.q_a_layernorm"
    widen: str = "self_attn.q_b_proj"
    latent: str = "self_attn.kv_a_proj_with_mqa"
    latent_norm: str = "self_attn.kv_a_layernorm"
    expand: str = "self_attn.kv_b_proj"
    out: str = "self_attn.o_proj"

    def linears(self, a: MlaArch) -> dict[str, tuple[int, int]]:
        """Linears by name within the layer, with their (N, M)."""
        D, H = a.hidden_size, a.num_heads
        query = {self.query: (H * a.query_dim, D)}
        if a.narrow:
            query = {self.narrow: (a.narrow, D), self.widen: (H * a.query_dim, a.narrow)}
        return {
            **query,
            self.latent: (a.head_dim, D),
            self.expand: (H * (a.plain_dim + a.value_dim), a.latent),
            self.out: (D, H * a.value_dim),
        }

    def plain(self, a: MlaArch) -> dict[str, tuple[int, ...]]:
        """Norms and promised biases by full name within the layer."""
        found: dict[str, tuple[int, ...]] = {
            f"{self.norm}.weight": (a.hidden_size,), f"{self.latent_norm}.weight": (a.latent,)
        }  # fmt: skip
        if a.narrow:
            found[f"{self.narrow_norm}.weight"] = (a.narrow,)
        biased = [name for name in (self.narrow if a.narrow else "", self.latent, self.out) if name and a.bias]
        return found | {f"{name}.bias": self.linears(a)[name][:1] for name in biased}


# The norms inside have an epsilon of their own, whatever config.json says of the others.
INNER_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Mla:
    """Latent attention, as a block of a family."""

    def build(self, loader: Loader, names: MlaNames, prefix: str, a: MlaArch, eps: float) -> MlaParts:
        absorb_HCR, raise_HVR = _expansion(loader, prefix + names.expand, a)
        narrow = self._linear(loader, names, prefix, a, names.narrow) if a.narrow else None
        return MlaParts(
            norm=Norm(loader.vector(f"{prefix}{names.norm}.weight", a.hidden_size), eps),
            query=self._linear(loader, names, prefix, a, names.widen if a.narrow else names.query),
            latent=self._linear(loader, names, prefix, a, names.latent),
            latent_norm=Norm(loader.vector(f"{prefix}{names.latent_norm}.weight", a.latent), INNER_EPS),
            absorb_HCR=absorb_HCR,
            raise_HVR=raise_HVR,
            out=self._linear(loader, names, prefix, a, names.out),
            heads=Heads(len(absorb_HCR), 1, a.head_dim),
            facts=AttentionFacts(a.scale, window_tokens=a.window_tokens),
            reduce=loader.group.all_reduce,
            group=a.group,
            narrow=narrow,
            narrow_norm=self._narrow_norm(loader, prefix + names.narrow_norm, a),
        )

    @staticmethod
    def _linear(loader: Loader, names: MlaNames, prefix: str, a: MlaArch, name: str) -> Linear:
        promised = a.bias and name in (names.narrow, names.latent, names.out)
        part = read_part(loader.source, prefix + name, names.linears(a)[name], a.num_heads, promised)
        if name in (names.narrow, names.latent):
            return Linear((part,), "replicated", loader)
        return Linear((part,), "row" if name == names.out else "column", loader)

    @staticmethod
    def _narrow_norm(loader: Loader, name: str, a: MlaArch) -> Norm | None:
        return Norm(loader.vector(f"{name}.weight", a.narrow), INNER_EPS) if a.narrow else None

    def run(self, ops: Ops, stream: Stream, parts: MlaParts, following: Norm, rows: RowMeta, pages: KVPages) -> Stream:
        q_THK = ops.mla_in(stream, parts, rows, pages)
        return ops.attn_out(stream, ops.mla_attend(q_THK, parts, rows, pages), parts, following)


def _expansion(loader: Loader, name: str, a: MlaArch) -> tuple[Tensor, Tensor]:
    """What would make keys and values of a latent, by head, as plain numbers: it is moved to the other side."""
    rows = a.plain_dim + a.value_dim
    part = shard(read_part(loader.source, name, (a.num_heads * rows, a.latent), a.num_heads), "column", loader.group)
    first, last = unit_span(a.num_heads, a.num_heads, loader.group)
    whole = part.weight.to(loader.device).dequantize(loader.dtype).view(last - first, rows, a.latent)
    absorb_HCR, raise_HVR = torch.split(whole, [a.plain_dim, a.value_dim], 1)
    return absorb_HCR.contiguous(), raise_HVR.contiguous()
