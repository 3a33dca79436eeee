"""The one linear of the house: named weights, sharded over ranks, fused by join, prepared by the backend.

N out features, M in features. A column linear holds this rank's rows of N (q/k/v, gate/up, head), a row linear its
columns of M (o, down) and its result must be summed over ranks. No branch on a weight's format anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenmill.distributed.contract import Group
from tokenmill.errors import ConfigError, FormatError
from tokenmill.kernels.ops import Ops, Prepared
from tokenmill.log import get_logger
from tokenmill.weights.classes import Dense
from tokenmill.weights.contract import Source, Weight
from tokenmill.weights.fuse import fuse
from tokenmill.weights.record import Record

Kind = Literal["column", "row", "replicated"]


@dataclass(frozen=True, slots=True)
class Loader:
    """Where weights come from and where they go: what every layer is built with."""

    source: Source
    ops: Ops
    device: torch.device
    dtype: torch.dtype
    group: Group

    def vector(self, name: str, size: int) -> Tensor:
        """A norm's weight, on the device."""
        value = self.source.tensor(name)
        if tuple(value.shape) != (size,):
            raise FormatError(f"{name} has shape {tuple(value.shape)}; config.json asks for ({size},)")
        return value.to(self.device, self.dtype)


@dataclass(frozen=True, slots=True)
class Part:
    """A named piece of a linear. `units`: equal pieces of its sharded axis that must not be cut (heads)."""

    weight: Weight
    bias: Tensor | None
    units: int


class Linear:
    """`linear(x_TM) -> y_TN` of this rank's share. Holds what `prepare_linear` made."""

    def __init__(self, parts: tuple[Part, ...], kind: Kind, loader: Loader):
        shares = [shard(part, kind, loader.group) for part in parts]
        weight, bias = join(shares)
        bias = None if bias is None else bias.to(loader.device)
        self.shape = weight.shape
        self.nbytes = weight.nbytes
        self.prepared: Prepared = loader.ops.primitives.prepare_linear(weight.to(loader.device), bias, loader.dtype)

    def __call__(self, x_TM: Tensor) -> Tensor:
        return self.prepared(x_TM)

    def load(self, weight: Weight, bias: Tensor | None) -> None:
        self.prepared.load(weight, bias)


def read_part(source: Source, name: str, shape: tuple[int, int], units: int, bias: bool = False) -> Part:
    """The linear called `name`. A bias on disk is used whatever config.json says; a promised one must be there."""
    weight = source.weight(name)
    if weight.shape != shape:
        raise FormatError(f"{name} has shape {weight.shape}; config.json asks for {shape}")
    return Part(weight, read_bias(source, name, shape[0], bias), units)


def read_bias(source: Source, name: str, size: int, promised: bool) -> Tensor | None:
    if not promised and not source.has(f"{name}.bias"):
        return None
    bias = source.tensor(f"{name}.bias")
    if tuple(bias.shape) != (size,):
        raise FormatError(f"{name}.bias has shape {tuple(bias.shape)}; config.json asks for ({size},)")
    return bias


def split_part(part: Part, sizes: tuple[int, ...], units: tuple[int, ...]) -> tuple[Part, ...]:
    """A linear that holds several, cut along N into parts of `sizes` rows and `units` pieces each."""
    weights = split_rows(part.weight, sizes)
    biases = (None,) * len(sizes) if part.bias is None else torch.split(part.bias, list(sizes))
    return tuple(Part(*cut) for cut in zip(weights, biases, units, strict=True))


def take_rows(part: Part, rows_N: Tensor) -> Part:
    """A part with its rows in another order; as plain numbers, with a warning, where rows share a block of scales."""
    weight, bias = part.weight, None if part.bias is None else part.bias[rows_N]
    if isinstance(weight, Record):
        try:
            return Part(weight.take(rows_N), bias, part.units)
        except FormatError as error:
            get_logger().warning("held as plain numbers, which costs memory: %s", error)
    return Part(Dense(weight.dequantize()[rows_N]), bias, part.units)


def split_rows(weight: Weight, sizes: tuple[int, ...]) -> tuple[Weight, ...]:
    """Rows apart; as plain numbers, with a warning, where a cut would fall inside a block of the weight's scales."""
    try:
        return weight.split(0, sizes)
    except FormatError as error:
        get_logger().warning("held as plain numbers, which costs memory: %s", error)
    return Dense(weight.dequantize()).split(0, sizes)


def shard(part: Part, kind: Kind, group: Group) -> Part:
    """This rank's share. Where ranks outnumber units (kv heads), each unit lies on several ranks."""
    if kind == "replicated" or group.size == 1:
        return part
    if kind == "column":
        return Part(_cut(part.weight, 0, part.units, group), _cut_bias(part, group), part.units)
    # The sum over ranks must hold the bias once.
    return Part(_cut(part.weight, 1, part.units, group), part.bias if group.rank == 0 else None, part.units)


def unit_span(length: int, units: int, group: Group) -> tuple[int, int]:
    """First and last + 1 of this rank's places on an axis of `length` places in `units` pieces."""
    piece = length // units
    if units % group.size == 0:
        share = units // group.size
        return group.rank * share * piece, (group.rank + 1) * share * piece
    if group.size % units == 0:
        unit = group.rank * units // group.size
        return unit * piece, (unit + 1) * piece
    raise ConfigError(f"{units} heads or groups cannot be spread over --tp {group.size}: use a tp that divides {units}")


def _cut(weight: Weight, axis: int, units: int, group: Group) -> Weight:
    length = weight.shape[axis]
    first, last = unit_span(length, units, group)
    sizes = tuple(size for size in (first, last - first, length - last) if size)
    return weight.split(axis, sizes)[1 if first else 0]


def _cut_bias(part: Part, group: Group) -> Tensor | None:
    if part.bias is None:
        return None
    first, last = unit_span(len(part.bias), part.units, group)
    return part.bias[first:last]


def join(parts: list[Part]) -> tuple[Weight, Tensor | None]:
    """Parts joined along N; weights of different classes or schemes by the rule of `weights/fuse.py`."""
    return fuse(tuple(part.weight for part in parts)), _join_bias(parts)


def _join_bias(parts: list[Part]) -> Tensor | None:
    if all(part.bias is None for part in parts):
        return None
    zeros: Callable[[Part], Tensor] = lambda part: torch.zeros(part.weight.shape[0])
    return torch.cat([zeros(part) if part.bias is None else part.bias.float() for part in parts])
