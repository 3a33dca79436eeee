"""A source read by other names than its own: for towers whose arithmetic is shared and whose names are not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenmill.weights.contract import Source, Weight
from tokenmill.weights.fuse import fuse


class RenamedSource:
    """`contract.Source` in which each key of `parts` stands for its values, joined along rows where they are several.

    A key is whole pieces of a name between dots ("attn.qkv"); keys are looked for in their order, each once. Errors and
    `names` give the checkpoint's own names.
    """

    def __init__(self, source: Source, parts: Mapping[str, tuple[str, ...]]):
        self.source = source
        self.parts = parts

    def weight(self, name: str) -> Weight:
        return fuse(tuple(self.source.weight(own) for own in self.own_names(name)))

    def tensor(self, name: str) -> Tensor:
        found = [self.source.tensor(own) for own in self.own_names(name)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def has(self, name: str) -> bool:
        return all(self.source.has(own) for own in self.own_names(name))

    def names(self) -> tuple[str, ...]:
        return self.source.names()

    def own_names(self, name: str) -> tuple[str, ...]:
        """What a name stands for in the checkpoint."""
        return rename(name, self.parts)


def rename(name: str, parts: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """A name with every key of `parts` replaced: as many names as the values have."""
    names: tuple[str, ...] = (name,)
    for part, owns in parts.items():
        names = tuple(new for own in names for new in _replaced(own, part, owns))
    return names


def _replaced(name: str, part: str, owns: tuple[str, ...]) -> tuple[str, ...]:
    head, found, tail = f".{name}.".partition(f".{part}.")
    if not found:
        return (name,)
    return tuple(f"{head}.{own}.{tail}".strip(".") for own in owns)
