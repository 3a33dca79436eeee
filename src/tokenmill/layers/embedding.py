"""Token embedding and output head. V vocabulary, D hidden. Every rank has the whole table and its rows of the head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.errors import FormatError
from tokenmill.kernels.ops import HeadParts
from tokenmill.layers.linear import Linear, Loader, Part, read_part
from tokenmill.weights.classes import Dense


class Embedding:
    """`embedding(ids_T) -> [T, D]` in the model's dtype, times `scale` as that dtype holds it."""

    def __init__(self, loader: Loader, name: str, shape: tuple[int, int], scale: float = 1.0):
        table = loader.source.tensor(f"{name}.weight")
        if tuple(table.shape) != shape:
            raise FormatError(f"{name}.weight has shape {tuple(table.shape)}; config.json asks for {shape}")
        self.table_VD = table.to(loader.device, loader.dtype)
        self.scale = float(torch.tensor(scale, dtype=loader.dtype))

    def __call__(self, ids_T: Tensor) -> Tensor:
        found_TD = functional.embedding(ids_T, self.table_VD)
        return found_TD if self.scale == 1.0 else found_TD * self.scale


def build_head(loader: Loader, name: str, embedding: Embedding, tied: bool) -> HeadParts:
    """The head called `name`; the embedding's table where the two are tied (nothing is copied on one rank)."""
    V, D = embedding.table_VD.shape
    if tied:
        return head_parts(loader, Part(Dense(embedding.table_VD), None, V))
    return head_parts(loader, read_part(loader.source, name, (V, D), V))


def head_parts(loader: Loader, part: Part) -> HeadParts:
    """A head of V rows, spread over ranks where they divide V."""
    V = part.weight.shape[0]
    if V % loader.group.size == 0:
        return HeadParts(Linear((part,), "column", loader), loader.group.all_gather)
    return HeadParts(Linear((part,), "replicated", loader), lambda logits_RV: logits_RV)
