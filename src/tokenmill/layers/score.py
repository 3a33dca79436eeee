"""A reward model's end: from a hidden state to a score, in place of the output head. D hidden, R positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.layers.linear import Loader, read_bias, read_part


@dataclass(frozen=True, slots=True)
class Score:
    """Linears by name, one behind the other with ReLU between; the last has one row. `bias`: each has one."""

    linears: tuple[str, ...]
    bias: bool = False

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Every tensor by full name."""
        widths = (*(hidden_size,) * (len(self.linears) - 1), 1)
        found: dict[str, tuple[int, ...]] = {}
        for name, width in zip(self.linears, widths, strict=True):
            found[f"{name}.weight"] = (width, hidden_size)
            found |= {f"{name}.bias": (width,)} if self.bias else {}
        return found

    def build(self, loader: Loader, hidden_size: int) -> Scorer:
        """Whole on every rank: it is small."""
        layers = []
        for name in self.linears:
            shape = self.shapes(hidden_size)[f"{name}.weight"]
            weight = read_part(loader.source, name, (shape[0], shape[1]), 1).weight.to(loader.device)
            bias = read_bias(loader.source, name, shape[0], self.bias)
            held = None if bias is None else bias.to(loader.device, torch.float32)
            layers.append((weight.dequantize(torch.float32), held))
        return Scorer(tuple(layers))


@dataclass(frozen=True, slots=True)
class Scorer:
    """`scorer(hidden_RD) -> [R, 1]`, in fp32."""

    layers: tuple[tuple[Tensor, Tensor | None], ...]

    def __call__(self, hidden_RD: Tensor) -> Tensor:
        x = hidden_RD.float()
        for index, (weight_NM, bias_N) in enumerate(self.layers):
            x = functional.linear(x if index == 0 else functional.relu(x), weight_NM, bias_N)
        return x
