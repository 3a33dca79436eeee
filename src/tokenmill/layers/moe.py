"""Mixtures of experts: how a checkpoint holds router, experts and shared expert, and the parts a block op runs.

D hidden, E experts, F an expert's width. Ranks share every expert's width out, so that the sum over ranks that a dense
MLP needs is all that a mixture needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import MoeParts, Norm, Ops, PreparedExperts, Routing, SharedParts
from tokenmill.layers.linear import Kind, Linear, Loader, Part, join, read_part, shard
from tokenmill.weights.contract import Source


@dataclass(frozen=True, slots=True)
class MoeArch:
    """One layer's mixture in numbers. `shared_size`: width of the expert that every token goes through (0: none)."""

    hidden_size: int
    ffn_size: int
    num_experts: int
    routing: Routing
    shared_size: int = 0

    @property
    def bias(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class MoeNames:
    """Names within a layer. `expert` has one place for the expert's index and ends in a dot, `shared` ends in a dot.

    gate, up, down: an expert's linears, within it. `choice_bias`: what is added to scores when experts are chosen.
    `shared_gate`: a linear of one row whose sigmoid the shared expert's result is multiplied by.
    """

    norm: str
    router: str
    expert: str
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: str = ""
    shared_gate: str = ""
    choice_bias: str = ""

    @property
    def post_norm(self) -> str:
        return ""

    def shapes(self, a: MoeArch) -> dict[str, tuple[int, int]]:
        """Linears by name within the layer, with their (N, M)."""
        prefixes = [(self.expert.format(index), a.ffn_size) for index in range(a.num_experts)]
        if a.shared_size:
            prefixes.append((self.shared, a.shared_size))
        found: dict[str, tuple[int, int]] = {}
        for prefix, width in prefixes:
            inner = (width, a.hidden_size)
            found |= {prefix + self.gate: inner, prefix + self.up: inner, prefix + self.down: inner[::-1]}
        return found

    def plain(self, a: MoeArch) -> dict[str, tuple[int, ...]]:
        """Tensors that are never quantized by full name within the layer, the norm left out."""
        found: dict[str, tuple[int, ...]] = {f"{self.router}.weight": (a.num_experts, a.hidden_size)}
        if self.choice_bias:
            found[self.choice_bias] = (a.num_experts,)
        if self.shared_gate and a.shared_size:
            found[f"{self.shared_gate}.weight"] = (1, a.hidden_size)
        return found


@dataclass(frozen=True, slots=True)
class Moe:
    """A mixture of gated MLPs with SiLU, as a block of a family."""

    def build(self, loader: Loader, names: MoeNames, prefix: str, a: MoeArch, eps: float) -> MoeParts:
        experts = [_read(loader.source, prefix + names.expert.format(e), names, a) for e in range(a.num_experts)]
        return MoeParts(
            norm=Norm(loader.vector(f"{prefix}{names.norm}.weight", a.hidden_size), eps),
            router_ED=plain(loader, f"{prefix}{names.router}.weight", (a.num_experts, a.hidden_size)),
            routing=a.routing,
            gate_up=prepare((parts[:2] for parts in experts), "column", loader),
            down=prepare((parts[2:] for parts in experts), "row", loader),
            reduce=loader.group.all_reduce,
            choice_bias_E=plain(loader, prefix + names.choice_bias, (a.num_experts,)) if names.choice_bias else None,
            shared=_shared(loader, prefix, names, a),
        )

    def run(self, ops: Ops, stream: Stream, parts: MoeParts, following: Norm) -> Stream:
        return ops.moe_block(stream, parts, following)


def _read(source: Source, prefix: str, names: MoeNames, a: MoeArch, width: int = 0) -> tuple[Part, Part, Part]:
    """gate, up and down of one expert."""
    F, D = width or a.ffn_size, a.hidden_size
    gate, up = (read_part(source, prefix + name, (F, D), F) for name in (names.gate, names.up))
    return gate, up, read_part(source, prefix + names.down, (D, F), F)


def prepare(experts: Iterable[tuple[Part, ...]], kind: Kind, loader: Loader) -> PreparedExperts:
    """This rank's share of every expert, ready to run. Each expert's parts are joined along N."""
    joined = [join([shard(part, kind, loader.group) for part in parts]) for parts in experts]
    weights = tuple(weight.to(loader.device) for weight, _ in joined)
    biases = tuple(None if bias is None else bias.to(loader.device) for _, bias in joined)
    return loader.ops.primitives.prepare_experts(weights, biases, loader.dtype)


def plain(loader: Loader, name: str, shape: tuple[int, ...]) -> Tensor:
    """A small tensor of the router's arithmetic, fp32 on the device."""
    value = loader.source.tensor(name)
    if tuple(value.shape) != shape:
        raise FormatError(f"{name} has shape {tuple(value.shape)}; config.json asks for {shape}")
    return value.to(loader.device, torch.float32)


def _shared(loader: Loader, prefix: str, names: MoeNames, a: MoeArch) -> SharedParts | None:
    if not a.shared_size:
        return None
    gate, up, down = _read(loader.source, prefix + names.shared, names, a, a.shared_size)
    gate_1D = None
    if names.shared_gate:
        gate_1D = plain(loader, f"{prefix}{names.shared_gate}.weight", (1, a.hidden_size))
    return SharedParts(Linear((gate, up), "column", loader), Linear((down,), "row", loader), gate_1D)
