"""A layer's mixture of experts in plain torch and fp32, for runs that follow the residual through it.

What no method here does is learn an expert's inputs: of a few windows, most tokens go past any one expert. So experts
are quantized by the methods that need no data, and their blocks run only so that the result is measured.

S tokens of a sequence, D hidden, E experts, k experts a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.kernels.reference.route import route
from tokenmill.layers.moe import Moe, MoeArch, MoeNames
from tokenmill.models.family import Block, DecoderArch, Family

Run = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Mixture:
    """One family's mixture: where its tensors lie within a layer, and its numbers."""

    names: MoeNames
    arch: MoeArch

    def out(self, linear: Run, vectors: Mapping[str, Tensor], x_SD: Tensor) -> Tensor:
        """The weighted sum of the experts of a normed input, and the shared expert's. `linear` runs one by name."""
        names = self.names
        logits_SE = functional.linear(x_SD, vectors[f"{names.router}.weight"])
        weights_Sk, experts_Sk = route(logits_SE, vectors.get(names.choice_bias), self.arch.routing)
        out_SD = torch.zeros_like(x_SD)
        for index in sorted(set(experts_Sk.flatten().tolist())):
            rows, places = (experts_Sk == index).nonzero(as_tuple=True)
            found = self._gated(linear, names.expert.format(index), x_SD[rows])
            out_SD.index_add_(0, rows, found * weights_Sk[rows, places, None])
        return out_SD + self._shared(linear, vectors, x_SD) if self.arch.shared_size else out_SD

    def _gated(self, linear: Run, prefix: str, x_SD: Tensor) -> Tensor:
        inner = functional.silu(linear(prefix + self.names.gate, x_SD)) * linear(prefix + self.names.up, x_SD)
        return linear(prefix + self.names.down, inner)

    def _shared(self, linear: Run, vectors: Mapping[str, Tensor], x_SD: Tensor) -> Tensor:
        found = self._gated(linear, self.names.shared, x_SD)
        if not self.names.shared_gate:
            return found
        return found * functional.linear(x_SD, vectors[f"{self.names.shared_gate}.weight"]).sigmoid()


def mixture_of(family: Family, arch: DecoderArch, block: Block) -> Mixture | None:
    """The mixture of a family whose experts are what this file runs; None of any other."""
    names = family.names.sparse
    if arch.sparse is None or not isinstance(block.sparse, Moe) or not isinstance(names, MoeNames):
        return None
    return None if names.post_norm else Mixture(names, arch.sparse)


def plain_linears(family: Family, arch: DecoderArch) -> tuple[str, ...]:
    """Routers and gates of shared experts by full name: linears that stay plain, which other readers must be told."""
    names = family.names.sparse
    if arch.sparse is None or not isinstance(names, MoeNames):
        return ()
    kept = [names.router, *([names.shared_gate] if names.shared_gate and arch.sparse.shared_size else [])]
    layers = [family.names.layer.format(i) for i in range(arch.num_layers) if arch.is_sparse(i)]
    return tuple(layer + name for layer in layers for name in kept)
