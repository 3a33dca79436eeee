"""The gated MLP: down(silu(gate(x)) * up(x)). D hidden, F ffn width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import MlpParts, Norm, Ops
from tokenmill.layers.linear import Linear, Loader, Part, read_part, split_part
from tokenmill.layers.reduce import reduce_with
from tokenmill.weights.contract import Source


@dataclass(frozen=True, slots=True)
class MlpArch:
    """One layer's MLP in numbers. `unit` features are never cut between ranks (a quantization group)."""

    hidden_size: int
    ffn_size: int
    bias: bool = False
    unit: int = 1


class MlpLayout(Protocol):
    """How a checkpoint stores gate, up and down. `norm` is the name of the norm before them, `post_norm` of the
    one on what they add ("": none).

    `inputs`: linears that read the normed input, gate's rows first. `output`: the one that reads what they make.
    """

    @property
    def norm(self) -> str: ...

    @property
    def post_norm(self) -> str: ...

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def output(self) -> str: ...

    def shapes(self, a: MlpArch) -> dict[str, tuple[int, int]]:
        """Linears by name within the layer, with their (N, M)."""
        ...

    def plain(self, a: MlpArch) -> dict[str, tuple[int, ...]]:
        """Promised biases by full name within the layer."""
        ...

    def read(self, source: Source, prefix: str, a: MlpArch) -> tuple[Part, Part, Part]:
        """gate and up (F, D), down (D, F)."""
        ...


@dataclass(frozen=True, slots=True)
class MlpNames:
    """Names within a layer: three linears."""

    norm: str
    gate: str
    up: str
    down: str
    post_norm: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.gate, self.up

    @property
    def output(self) -> str:
        return self.down

    def shapes(self, a: MlpArch) -> dict[str, tuple[int, int]]:
        inner = (a.ffn_size, a.hidden_size)
        return {self.gate: inner, self.up: inner, self.down: inner[::-1]}

    def plain(self, a: MlpArch) -> dict[str, tuple[int, ...]]:
        return promised_biases(self.shapes(a), a)

    def read(self, source: Source, prefix: str, a: MlpArch) -> tuple[Part, Part, Part]:
        shapes, units = self.shapes(a), a.ffn_size // a.unit
        gate, up, down = (
            read_part(source, prefix + name, shapes[name], units, a.bias) for name in (self.gate, self.up, self.down)
        )
        return gate, up, down


@dataclass(frozen=True, slots=True)
class PackedMlpNames:
    """Names within a layer: gate's rows and then up's in one linear."""

    norm: str
    gate_up: str
    down: str
    post_norm: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.gate_up,)

    @property
    def output(self) -> str:
        return self.down

    def shapes(self, a: MlpArch) -> dict[str, tuple[int, int]]:
        return {self.gate_up: (2 * a.ffn_size, a.hidden_size), self.down: (a.hidden_size, a.ffn_size)}

    def plain(self, a: MlpArch) -> dict[str, tuple[int, ...]]:
        return promised_biases(self.shapes(a), a)

    def read(self, source: Source, prefix: str, a: MlpArch) -> tuple[Part, Part, Part]:
        shapes, units = self.shapes(a), a.ffn_size // a.unit
        both = read_part(source, prefix + self.gate_up, shapes[self.gate_up], units, a.bias)
        gate, up = split_part(both, (a.ffn_size, a.ffn_size), (units, units))
        return gate, up, read_part(source, prefix + self.down, shapes[self.down], units, a.bias)


def promised_biases(linears: dict[str, tuple[int, int]], a: MlpArch) -> dict[str, tuple[int, ...]]:
    return {f"{name}.bias": shape[:1] for name, shape in linears.items()} if a.bias else {}


@dataclass(frozen=True, slots=True)
class Gated:
    """A gated MLP with SiLU, as a block of a family."""

    def build(self, loader: Loader, names: MlpLayout, prefix: str, a: MlpArch, eps: float) -> MlpParts:
        gate, up, down = names.read(loader.source, prefix, a)
        return MlpParts(
            norm=Norm(loader.vector(f"{prefix}{names.norm}.weight", a.hidden_size), eps),
            gate_up=Linear((gate, up), "column", loader),
            down=Linear((down,), "row", loader),
            reduce=reduce_with(loader, prefix + names.post_norm if names.post_norm else "", a.hidden_size, eps),
        )

    def run(self, ops: Ops, stream: Stream, parts: MlpParts, following: Norm) -> Stream:
        return ops.mlp_out(stream, ops.mlp_in(stream, parts), parts, following)
