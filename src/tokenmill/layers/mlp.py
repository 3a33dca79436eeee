"""The gated MLP: down(silu(gate(x)) * up(x)). D hidden, F ffn width."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.kernels.ops import MlpParts, Norm
from tokenmill.layers.linear import Linear, Loader, read_part


@dataclass(frozen=True, slots=True)
class MlpArch:
    """One layer's MLP in numbers. `unit` features are never cut between ranks (a quantization group)."""

    hidden_size: int
    ffn_size: int
    bias: bool = False
    unit: int = 1


@dataclass(frozen=True, slots=True)
class MlpNames:
    """Names within a layer."""

    norm: str
    gate: str
    up: str
    down: str

    def shapes(self, a: MlpArch) -> dict[str, tuple[int, int]]:
        inner = (a.ffn_size, a.hidden_size)
        return {self.gate: inner, self.up: inner, self.down: inner[::-1]}


@dataclass(frozen=True, slots=True)
class Gated:
    """A gated MLP with SiLU, as a block of a family."""

    def build(self, loader: Loader, names: MlpNames, prefix: str, a: MlpArch, eps: float) -> MlpParts:
        shapes = names.shapes(a)
        units = a.ffn_size // a.unit
        gate, up, down = (
            read_part(loader.source, prefix + name, shapes[name], units, a.bias)
            for name in (names.gate, names.up, names.down)
        )
        return MlpParts(
            norm=Norm(loader.vector(f"{prefix}{names.norm}.weight", a.hidden_size), eps),
            gate_up=Linear((gate, up), "column", loader),
            down=Linear((down,), "row", loader),
            reduce=loader.group.all_reduce,
        )
