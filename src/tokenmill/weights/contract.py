"""Seam C: between family and format. A layer asks a `Source` for a name and gets a `Weight`.

Every linear is logically (N out, M in). Disk format, runtime weight and kernel are three things in three rooms.
"""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor, device, dtype


class Weight(Protocol):
    """One linear's numbers. A leading expert axis is allowed; axis 0 is N, axis 1 is M."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def nbytes(self) -> int: ...

    def to(self, device: device | str) -> Self:
        """The same numbers on a device."""
        ...

    def split(self, axis: int, sizes: tuple[int, ...]) -> tuple[Self, ...]:
        """Parts along N or M; refuses (FormatError) to cut a group."""
        ...

    def join(self, axis: int, others: tuple[Self, ...]) -> Self:
        """This and the others along an axis; all of the same class and scheme."""
        ...

    def dequantize(self, dtype: dtype | None = None) -> Tensor:
        """[N, M] in `dtype` (fp32 where None), computed in fp32."""
        ...


class Source(Protocol):
    """A checkpoint, by name. Reads tensors when asked; at most one shard is resident."""

    def weight(self, name: str) -> Weight:
        """The linear called `name` (no suffix: "model.layers.0.self_attn.q_proj").

        Three loud failures (FormatError): nothing at this name, nobody claims these tensors, shapes disagree.
        """
        ...

    def tensor(self, name: str) -> Tensor:
        """A plain tensor by its full name: norm, embedding, bias."""
        ...

    def has(self, name: str) -> bool: ...

    def names(self) -> tuple[str, ...]: ...
