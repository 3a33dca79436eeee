"""A part of a checkpoint as a source of its own: names lose a prefix."""

from __future__ import annotations

from torch import Tensor

from tokenmill.weights.contract import Source, Weight


class PrefixSource:
    """`contract.Source` of everything under `prefix` ("language_model."). Errors name the checkpoint's own names."""

    def __init__(self, source: Source, prefix: str):
        self.source = source
        self.prefix = prefix

    def weight(self, name: str) -> Weight:
        return self.source.weight(self.prefix + name)

    def tensor(self, name: str) -> Tensor:
        return self.source.tensor(self.prefix + name)

    def has(self, name: str) -> bool:
        return self.source.has(self.prefix + name)

    def names(self) -> tuple[str, ...]:
        own = len(self.prefix)
        return tuple(name[own:] for name in self.source.names() if name.startswith(self.prefix))
