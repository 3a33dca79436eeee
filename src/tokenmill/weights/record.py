"""What all weight classes share: a frozen record of tensors that knows how each of them lies along N and M.

Every tensor of a record has the axes [.., n, m], with an optional expert axis in front. Per logical axis a tensor has a
*unit*: how many features one of its elements stands for (1 for a plain value, the group for a scale, 32 / bits for a
packed word), or None where one element serves the whole axis. Split and join follow from the units alone: a cut that is
no multiple of a unit would cut a group and is refused; a tensor without unit is shared by the parts of a split, and
must be equal in all parts of a join.
"""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from tokenmill.errors import FormatError

Unit = Fraction | int | None
Units = tuple[Unit, Unit]
AXIS_NAMES = ("out-features", "in-features")


class Record:
    """Base of the weight classes. A subclass is a frozen slotted dataclass that defines `shape` and `_units`."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, int]:
        raise NotImplementedError

    def _units(self) -> dict[str, Units]:
        """Units along (N, M) of every tensor field."""
        raise NotImplementedError

    def _resized(self, num_in: int) -> dict[str, Any]:
        """Facts that change with the number of in-features."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors this record holds, by field."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def facts(self) -> dict[str, Any]:
        """Everything else: equal in all weights that may be joined, but for what `_resized` names."""
        held = self.tensors()
        names = [f.name for f in fields(self) if f.name not in held]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def num_experts(self) -> int | None:
        """Length of the leading expert axis; None where there is none."""
        tensor = next(iter(self.tensors().values()))
        return tensor.shape[0] if tensor.dim() == 3 else None

    def to(self, device: torch.device | str) -> Self:
        return self._with({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def split(self, axis: int, sizes: tuple[int, ...]) -> tuple[Self, ...]:
        """Parts along N (0) or M (1). FormatError where a cut goes through a group, block or word."""
        length = self.shape[axis]
        if sum(sizes) != length or min(sizes, default=0) <= 0:
            raise FormatError(f"sizes {sizes} do not add up to the {length} {AXIS_NAMES[axis]}")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(self._slice(axis, start, start + size) for start, size in zip(starts, sizes, strict=True))

    def take(self, rows_N: Tensor) -> Self:
        """The rows along N in another order. FormatError where rows share more than the whole axis does."""
        units = {name: self._units()[name][0] for name in self.tensors()}
        if any(unit not in (1, None) for unit in units.values()):
            raise FormatError(f"rows of {type(self).__name__} cannot be reordered: several of them share a scale")
        rows = {name: rows_N.to(tensor.device) for name, tensor in self.tensors().items()}
        return self._with({
            name: tensor if units[name] is None else tensor.index_select(tensor.dim() - 2, rows[name])
            for name, tensor in self.tensors().items()
        })  # fmt: skip

    def join(self, axis: int, others: tuple[Self, ...]) -> Self:
        """This and the others along N (0) or M (1). FormatError where class, facts or shared tensors differ."""
        parts = (self, *others)
        for other in others:
            self._check_like(other, axis)
        lengths = [part.shape[axis] for part in parts]
        joined = {
            name: _cat([part.tensors()[name] for part in parts], units[axis], axis, lengths)
            for name, units in self._units().items()
            if name in self.tensors()
        }
        return self._with(joined, sum(lengths) if axis == 1 else self.shape[1])

    def _with(self, tensors: dict[str, Tensor], num_in: int | None = None) -> Self:
        facts = self._resized(num_in) if num_in is not None else {}
        return replace(self, **tensors, **facts)  # type: ignore[type-var]

    def _slice(self, axis: int, start: int, stop: int) -> Self:
        length, units = self.shape[axis], self._units()
        cut = {
            name: _cut(tensor, units[name][axis], axis, (start, stop, length))
            for name, tensor in self.tensors().items()
        }
        return self._with(cut, stop - start if axis == 1 else None)

    def _check_like(self, other: Self, axis: int) -> None:
        if type(other) is not type(self):
            raise FormatError(f"cannot join {type(self).__name__} with {type(other).__name__}")
        free = set(self._resized(0)) if axis == 1 else set()
        ours, theirs = self.facts(), other.facts()
        differ = [name for name in ours if name not in free and ours[name] != theirs.get(name)]
        if differ or self.tensors().keys() != other.tensors().keys():
            what = ", ".join(differ) or "tensors"
            raise FormatError(f"cannot join two {type(self).__name__} whose {what} differ")
        if self.shape[1 - axis] != other.shape[1 - axis]:
            raise FormatError(f"cannot join shapes {self.shape} and {other.shape} along {AXIS_NAMES[axis]}")


AnyRecord = TypeVar("AnyRecord", bound=Record)


def stack(weights: tuple[AnyRecord, ...]) -> AnyRecord:
    """Experts of one shape and scheme as one weight with a leading expert axis."""
    first = weights[0]
    for other in weights[1:]:
        if type(other) is not type(first) or other.facts() != first.facts() or other.shape != first.shape:
            raise FormatError(
                f"experts differ: {type(first).__name__} {first.shape}, {type(other).__name__} {other.shape}"
            )
    held = [weight.tensors() for weight in weights]
    return first._with({name: torch.stack([tensors[name] for tensors in held]) for name in held[0]})


def unstack(weight: AnyRecord) -> tuple[AnyRecord, ...]:
    """The experts of a weight with a leading expert axis; sharing its storage."""
    if weight.num_experts is None:
        raise FormatError(f"{type(weight).__name__} {weight.shape} has no expert axis")
    held = weight.tensors()
    return tuple(
        weight._with({name: tensor[index] for name, tensor in held.items()}) for index in range(weight.num_experts)
    )


def identical(a: Record, b: Record) -> bool:
    """Same class, facts and bits."""
    ours, theirs = a.tensors(), b.tensors()
    if type(a) is not type(b) or a.facts() != b.facts() or ours.keys() != theirs.keys():
        return False
    return all(same_bits(ours[name], theirs[name]) for name in ours)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and bits: NaN equals itself, 0 differs from -0."""
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return False
    return torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def _cut(tensor: Tensor, unit: Unit, axis: int, span: tuple[int, int, int]) -> Tensor:
    if unit is None:
        return tensor
    start, stop, length = span
    first, last = Fraction(start) / unit, Fraction(stop) / unit
    if first.denominator != 1 or (last.denominator != 1 and stop != length):
        raise FormatError(f"{AXIS_NAMES[axis]} [{start}, {stop}) cut a group: cut at multiples of {_smallest(unit)}")
    return tensor.narrow(tensor.dim() - 2 + axis, int(first), -(-last.numerator // last.denominator) - int(first))


def _cat(tensors: list[Tensor], unit: Unit, axis: int, lengths: list[int]) -> Tensor:
    if unit is None:
        if not all(same_bits(tensors[0], tensor) for tensor in tensors[1:]):
            raise FormatError(f"cannot join along {AXIS_NAMES[axis]}: what the whole axis shares differs between parts")
        return tensors[0]
    if any((Fraction(length) / unit).denominator != 1 for length in lengths[:-1]):
        raise FormatError(f"cannot join parts of {lengths} {AXIS_NAMES[axis]}: groups hold {_smallest(unit)}")
    return torch.cat(tensors, tensors[0].dim() - 2 + axis)


def _smallest(unit: Fraction | int) -> int:
    """Fewest whole features that end on an element."""
    return Fraction(unit).numerator
