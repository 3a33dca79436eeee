"""One decoder block in memory, in plain torch and fp32: what calibration runs and methods change.

Linears are kept by their name on disk within the layer, so that every family that is declared by names (grouped or
separate q, k, v) is quantized by the same code. A sequence is [S, D]; attention is causal over it. `Site`s are the four
places where linears get their input; methods walk through them in order. A layer with experts has the first two only.

S tokens of a sequence, D hidden, H query heads, G kv heads, K head dim, N out, M in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.errors import ConfigError, FormatError
from tokenmill.kernels.reference.rms_norm import rms_norm
from tokenmill.kernels.reference.rope import rope
from tokenmill.layers.attention import AttentionArch, AttentionNames, Gqa, QKVNames, alibi_slopes
from tokenmill.layers.mlp import Gated
from tokenmill.layers.rope import Rope, logn_factors
from tokenmill.models.family import DecoderArch, Family
from tokenmill.models.spec import layer_linears, layer_plain
from tokenmill.quant.experts import Mixture, mixture_of
from tokenmill.weights.classes import Dense
from tokenmill.weights.contract import Source, Weight

SITES = ("qkv", "out", "gate_up", "down")


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """What all blocks of a model share. qkv_rows: rows of q, k and v in the qkv linears, laid end to end.

    mixture: of the layers that have experts.
    """

    family: Family
    arch: DecoderArch
    attention: AttentionArch
    attention_names: AttentionNames
    rope: Rope
    qkv_rows: tuple[Tensor, Tensor, Tensor]
    mixture: Mixture | None = None

    def names(self, site: str) -> tuple[str, ...]:
        """Linears that read a site, by name within the layer."""
        attention, mlp = self.attention_names, self.family.names.mlp
        return {
            "qkv": tuple(attention.qkv.shapes(self.attention)),
            "out": (attention.out,),
            "gate_up": mlp.inputs,
            "down": (mlp.output,),
        }[site]


def block_facts(
    family: Family, arch: DecoderArch, device: torch.device | str = "cpu", experts: bool = False
) -> BlockFacts:
    """Raises ConfigError for a family whose layers are not what this file runs; experts only where they are asked for.

    A method that needs no data asks for them: it walks linears and no sites.
    """
    block, names, attention = family.block(arch), family.names.attention, arch.attention
    mixture = mixture_of(family, arch, block)
    plain = isinstance(block.attention, Gqa) and isinstance(block.mlp, Gated) and not family.names.mlp.post_norm
    plain = plain and isinstance(names, AttentionNames) and isinstance(attention, AttentionArch)
    if not plain or (arch.sparse is not None and not (experts and mixture)):
        way = "quantize a model of another family, or serve this one as it is"
        if plain and mixture:
            way = "experts need no data with lite auto_awq --method rtn, blocked_fp8, or smooth_quant --quant-dtype fp8"
        raise ConfigError(
            f"calibration runs plain attention and one gated MLP a layer, not the layers of {family.name}: {way}"
        )
    rows = tuple(r.to(device) for r in qkv_rows(names.qkv, attention))  # type: ignore[union-attr, arg-type]
    turn = Rope(arch.rope, device)
    return BlockFacts(family, arch, attention, names, turn, rows, mixture)  # type: ignore[arg-type]


def qkv_rows(names: QKVNames, a: AttentionArch) -> tuple[Tensor, Tensor, Tensor]:
    """Where the rows of q, k and v lie: the family reads linears one column wide, whose numbers are row numbers."""
    narrow = replace(a, hidden_size=1, qkv_bias=False)
    columns, start = {}, 0
    for name, (num_out, _) in names.shapes(narrow).items():
        columns[name] = Dense(torch.arange(start, start + num_out, dtype=torch.float32)[:, None])
        start += num_out
    parts = names.read(_Held(columns), "", narrow)
    q, k, v = (part.weight.dequantize(torch.float32)[:, 0].long() for part in parts)
    return q, k, v


@dataclass(frozen=True, slots=True)
class _Held:
    """A Source of what is in memory."""

    weights: dict[str, Dense]

    def weight(self, name: str) -> Weight:
        return self.weights[name]

    def tensor(self, name: str) -> Tensor:
        raise FormatError(f"no tensor {name} in memory")

    def has(self, name: str) -> bool:
        return False

    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)


class Block:
    """Linears fp32 [N, M] and vectors (norms, biases) fp32, by name within the layer; both may be replaced.

    stored: the dtype in which norms and biases lie on disk. window_tokens: what the layer's attention sees (None: all).
    mixture: what the layer has in place of one MLP (None: it has that MLP).
    """

    def __init__(self, facts: BlockFacts, linears: dict[str, Tensor], vectors: dict[str, Tensor], stored: torch.dtype):
        self.stored = stored
        self.window_tokens: int | None = None
        self.mixture: Mixture | None = None
        self.facts = facts
        self.linears = linears
        self.vectors = vectors

    def site_input(self, site: str, residual_SD: Tensor) -> Tensor:
        """What a site's linears read, from the residual before the site's half of the block."""
        names = self.facts.family.names
        if site in ("qkv", "out"):
            x_SD = self._norm(self.facts.attention_names.norm, residual_SD)
            return x_SD if site == "qkv" else self.attend(x_SD)
        x_SD = self._norm(names.mlp.norm, residual_SD)
        return x_SD if site == "gate_up" else self.inner(x_SD)

    def advance(self, site: str, residual_SD: Tensor) -> Tensor:
        """The residual after a half of the block, whose last site is "out" or "down"."""
        return residual_SD + self.linear(self.facts.names(site)[0], self.site_input(site, residual_SD))

    def attend(self, x_SD: Tensor) -> Tensor:
        """From the normed input to what `out` reads, [S, H * K]."""
        a = self.facts.attention
        q, k, v = self.heads(x_SD)
        mask = self._mask(len(q))
        out = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None],
            mask, is_causal=mask is None, scale=a.head_dim**-0.5, enable_gqa=True,
        )  # fmt: skip
        return out[0].transpose(0, 1).flatten(1)

    def heads(self, x_SD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [S, H, K], k and v [S, G, K] of the normed input, as attention and its cache get them: behind rope."""
        head_dim = self.facts.attention.head_dim
        flat = torch.cat([self.linear(name, x_SD) for name in self.facts.names("qkv")], 1)
        q, k, v = (flat[:, rows].view(len(x_SD), -1, head_dim) for rows in self.facts.qkv_rows)
        q, k = self._head_norm("q_norm", q), self._head_norm("k_norm", k)
        cos, sin = self._angles(len(x_SD))
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        if self.facts.arch.logn_tokens is not None:
            q = q * logn_factors(torch.arange(len(q), device=q.device), self.facts.arch.logn_tokens)[:, None, None]
        return q, k, v

    def _mask(self, length: int) -> Tensor | None:
        """What is added to the scores, [S, S] or [H, S, S], where the layer has a window or ALiBi."""
        a, device = self.facts.attention, self.facts.qkv_rows[0].device
        if self.window_tokens is None and not a.alibi:
            return None
        places = torch.arange(length, device=device)
        ahead_SS = places - places[:, None]
        hidden_SS = (ahead_SS > 0) | (ahead_SS <= -(self.window_tokens or length))
        slopes_H = alibi_slopes(a.num_heads).to(device) if a.alibi else torch.zeros(1, device=device)
        return (slopes_H[:, None, None] * ahead_SS).masked_fill(hidden_SS, float("-inf"))

    def inner(self, x_SD: Tensor) -> Tensor:
        """From the normed input to what `down` reads, [S, F]."""
        flat = torch.cat([self.linear(name, x_SD) for name in self.facts.names("gate_up")], 1)
        gate, up = flat.chunk(2, 1)
        return functional.silu(gate) * up

    def linear(self, name: str, x_SM: Tensor) -> Tensor:
        return functional.linear(x_SM, self.linears[name], self.vectors.get(f"{name}.bias"))

    def attention_out(self, x_SD: Tensor) -> Tensor:
        """The whole attention of a normed input."""
        return self.linear(self.facts.names("out")[0], self.attend(x_SD))

    def mlp_out(self, x_SD: Tensor) -> Tensor:
        """The whole MLP of a normed input."""
        return self.linear(self.facts.names("down")[0], self.inner(x_SD))

    def run(self, stream: Tensor) -> Tensor:
        """The residual after the block."""
        stream = self.advance("out", stream)
        if self.mixture is None:
            return self.advance("down", stream)
        x_SD = self._norm(self.mixture.names.norm, stream)
        return stream + self.mixture.out(self.linear, self.vectors, x_SD)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return rms_norm(x, self.vectors[f"{name}.weight"], self.facts.arch.norm_eps)

    def _head_norm(self, which: str, x_SHK: Tensor) -> Tensor:
        name = getattr(self.facts.attention_names, which)
        return self._norm(name, x_SHK) if name else x_SHK

    def _angles(self, length: int) -> tuple[Tensor, Tensor]:
        rule = self.facts.arch.rope.base_rule()
        device = self.facts.qkv_rows[0].device
        bases = torch.full((length,), rule.for_prompt(length) if rule else 0.0, device=device)
        return self.facts.rope(bases, torch.arange(length, device=device))


def read_block(facts: BlockFacts, source: Source, index: int, device: torch.device | str = "cpu") -> Block:
    """Block `index` of a checkpoint, of any format, in fp32. FormatError where a shape is not config.json's."""
    prefix = facts.family.names.layer.format(index)
    linears, vectors, stored = {}, {}, torch.float32
    for name, shape in layer_linears(facts.family, facts.arch, index).items():
        weight = source.weight(prefix + name)
        if weight.shape != shape:
            raise FormatError(f"{prefix}{name} has shape {weight.shape}; config.json asks for {shape}")
        linears[name] = weight.to(device).dequantize(torch.float32)
        _check_finite(prefix + name, linears[name])
    wanted = [*layer_plain(facts.family, facts.arch, index), *(f"{name}.bias" for name in linears)]
    for name in dict.fromkeys(wanted):
        if not name.endswith(".bias") or source.has(prefix + name):
            held = source.tensor(prefix + name)
            stored = held.dtype
            vectors[name] = held.to(device, torch.float32)
            _check_finite(prefix + name, vectors[name])
    block = Block(facts, linears, vectors, stored)
    block.window_tokens = facts.arch.attention_of(index).window_tokens
    block.mixture = facts.mixture if facts.arch.is_sparse(index) else None
    return block


def _check_finite(name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise FormatError(f"{name} holds NaN or infinity: the source checkpoint is damaged, get it again")
