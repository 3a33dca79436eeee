"""Weight classes: one linear's numbers in memory, a short closed list of frozen records. No layout parameter, no tensor
subclass. Every class is logically (N out, M in), may carry one leading expert axis, and satisfies `contract.Weight`.

Legend: N out features, M in features, Q groups along M, E experts (leading, optional).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tokenmill.errors import FormatError

DENSE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def tensor_axis(tensor: Tensor, axis: int) -> int:
    """The tensor's axis for logical axis 0 (N) or 1 (M); counted from the end, because an expert axis may lead."""
    if axis not in (0, 1):
        raise ValueError(f"a linear has axis 0 (N) and 1 (M), not {axis}")
    return tensor.dim() - 2 + axis


def check_sizes(sizes: tuple[int, ...], length: int, axis: int) -> None:
    if sum(sizes) != length or min(sizes, default=0) < 0:
        raise FormatError(f"sizes {sizes} do not add up to the {length} {'features in' if axis else 'features out'}")


def check_join(first: object, others: tuple[object, ...], facts: tuple[str, ...] = ()) -> None:
    """All of one class, and equal in the named facts; FormatError says what differs."""
    for other in others:
        if type(other) is not type(first):
            raise FormatError(f"cannot join {type(first).__name__} with {type(other).__name__}: join them as Dense")
        for fact in facts:
            ours, theirs = getattr(first, fact), getattr(other, fact)
            if ours != theirs:
                raise FormatError(f"cannot join weights whose {fact} differ: {ours} and {theirs}")


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Plain numbers. value float16 | bfloat16 | float32, [N, M] or [E, N, M]."""

    value: Tensor

    def __post_init__(self) -> None:
        if self.value.dim() not in (2, 3):
            raise FormatError(f"a linear's weight has 2 axes (3 with experts), not shape {tuple(self.value.shape)}")
        if self.value.dtype not in DENSE_DTYPES:
            raise FormatError(f"a plain weight is float16, bfloat16 or float32, not {self.value.dtype}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.value.shape[-2], self.value.shape[-1]

    @property
    def nbytes(self) -> int:
        return self.value.nbytes

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.value.to(device))

    def split(self, axis: int, sizes: tuple[int, ...]) -> tuple[Self, ...]:
        dim = tensor_axis(self.value, axis)
        check_sizes(sizes, self.value.shape[dim], axis)
        return tuple(type(self)(part) for part in torch.split(self.value, list(sizes), dim))

    def join(self, axis: int, others: tuple[Self, ...]) -> Self:
        check_join(self, others)
        parts = [self.value, *(other.value for other in others)]
        return type(self)(torch.cat(parts, tensor_axis(self.value, axis)))

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.value.to(dtype or torch.float32)
