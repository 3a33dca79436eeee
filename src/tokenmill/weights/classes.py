"""Weight classes: one linear's numbers in memory, a short closed list of frozen records. No layout parameter, no tensor
subclass. Every class is logically (N out, M in), may carry one leading expert axis, and satisfies `contract.Weight`.

Construction checks that shapes and dtypes agree (FormatError), so a weight that exists is whole.

Legend: N out features, M in features, Q groups along M, W words along M, E experts (leading, optional).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.weights import packing
from tokenmill.weights.record import Record, Units

DENSE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SCALE_DTYPES = (*DENSE_DTYPES, torch.float8_e8m0fnu)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
# How a linear's input is quantized: per token, per tensor (measured or "static": stored), per token and 128 channels.
ACTIVATIONS = ("none", "int8-token", "fp8-token", "fp8-tensor", "fp8-static", "fp8-group")


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Record):
    """Plain numbers. value float16 | bfloat16 | float32 [N, M]."""

    value: Tensor

    def __post_init__(self) -> None:
        if self.value.dim() not in (2, 3):
            raise FormatError(f"a linear's weight has 2 axes (3 with experts), not shape {tuple(self.value.shape)}")
        if self.value.dtype not in DENSE_DTYPES:
            raise FormatError(f"a plain weight is float16, bfloat16 or float32, not {self.value.dtype}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.value.shape[-2], self.value.shape[-1]

    def _units(self) -> dict[str, Units]:
        return {"value": (1, 1)}

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.value.to(dtype or torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class IntGroup(Record):
    """Integer codes with a scale, and a zero, per row and group: w = (code - zero) * scale.

    codes int32 [N, W]: unsigned codes of `bits` (2, 3, 4, 8) as a dense stream along M (`weights/packing.py`).
    scales float [N, Q], of either sign. zeros int16 [N, Q] in [0, 2^bits]; None: 2^(bits - 1) everywhere (symmetric).
    group: in-features per scale, M / group rounded up scales a row; None: one scale a row (Q = 1).
    g_idx int32 [1, M]: the group of each in-feature under act-order; None where feature i is in group i // group.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    group: int | None
    num_in: int
    g_idx: Tensor | None = None

    def __post_init__(self) -> None:
        if self.bits not in packing.BITS:
            raise FormatError(f"integer weights have {', '.join(map(str, packing.BITS))} bits, not {self.bits}")
        lead, rows = self.codes.shape[:-2], self.codes.shape[-2]
        check("codes", self.codes, (*lead, rows, packing.num_words(self.num_in, self.bits)), (torch.int32,))
        check("scales", self.scales, (*lead, rows, self.num_groups), DENSE_DTYPES)
        if self.zeros is not None:
            check("zeros", self.zeros, (*lead, rows, self.num_groups), (torch.int16,))
        if self.g_idx is not None:
            check("g_idx", self.g_idx, (*lead, 1, self.num_in), (torch.int32,))

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[-2], self.num_in

    @property
    def num_groups(self) -> int:
        """Scales a row. A part of an act-order weight keeps the scales of the whole."""
        if self.g_idx is not None:
            return self.scales.shape[-1]
        return 1 if self.group is None else -(-self.num_in // self.group)

    @property
    def mid(self) -> int:
        """The zero of a symmetric grid."""
        return 1 << (self.bits - 1)

    def _units(self) -> dict[str, Units]:
        scale = self.group if self.g_idx is None else None
        return {
            "codes": (1, Fraction(32, self.bits)),
            "scales": (1, scale),
            "zeros": (1, scale),
            "g_idx": (None, 1),
        }

    def _resized(self, num_in: int) -> dict[str, Any]:
        return {"num_in": num_in}

    def unpacked(self) -> Tensor:
        """Codes as uint8 [N, M]."""
        return packing.unpack(self.codes, self.bits, self.num_in)

    def filled_zeros(self) -> Tensor:
        """Zeros int16 [N, Q], also where they are all the middle."""
        if self.zeros is not None:
            return self.zeros
        return torch.full(self.scales.shape, self.mid, dtype=torch.int16, device=self.scales.device)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        zeros = self.mid if self.zeros is None else self._spread(self.zeros.float())
        value = (self.unpacked().float() - zeros) * self._spread(self.scales.float())
        return value.to(dtype or torch.float32)

    def _spread(self, per_group: Tensor) -> Tensor:
        """[N, Q] -> [N, M] (or [N, 1] where one group serves the row)."""
        if self.g_idx is not None:
            index = self.g_idx.long().expand(*per_group.shape[:-1], self.num_in)
            return per_group.gather(-1, index)
        if self.group is None:
            return per_group
        return per_group.repeat_interleave(self.group, -1)[..., : self.num_in]


class Scaled(Record):
    """Base of the classes whose codes are plain numbers: w = code * scale, the scale broadcast over the codes."""

    __slots__ = ()
    codes: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[-2], self.codes.shape[-1]

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        return (self.codes.float() * self.scales.float()).to(dtype or torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Int8Channel(Scaled):
    """W8A8: w = code * scale. codes int8 [N, M], scales float [N, 1]. Inputs are quantized to int8 per token."""

    codes: Tensor
    scales: Tensor
    activation: str = "int8-token"

    def __post_init__(self) -> None:
        check("codes", self.codes, self.codes.shape, (torch.int8,))
        check("scales", self.scales, (*self.codes.shape[:-1], 1), DENSE_DTYPES)
        check_activation(self.activation)

    def _units(self) -> dict[str, Units]:
        return {"codes": (1, 1), "scales": (1, None)}


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Tensor(Scaled):
    """w = code * scale, one for all. codes float8 [N, M], scales [1, 1], input_scale [1, 1] where it is static."""

    codes: Tensor
    scales: Tensor
    input_scale: Tensor | None = None
    activation: str = "fp8-tensor"

    def __post_init__(self) -> None:
        check("codes", self.codes, self.codes.shape, FP8_DTYPES)
        one = (*self.codes.shape[:-2], 1, 1)
        check("scales", self.scales, one, DENSE_DTYPES)
        check_static(self.input_scale, one, self.activation)

    def _units(self) -> dict[str, Units]:
        return {"codes": (1, 1), "scales": (None, None), "input_scale": (None, None)}

    def as_channel(self) -> Fp8Channel:
        """The same numbers with the scale repeated per row, so that weights of different scales can be joined."""
        rows = self.scales.expand(*self.codes.shape[:-1], 1).contiguous()
        return Fp8Channel(self.codes, rows, self.input_scale, self.activation)


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Channel(Scaled):
    """w = code * scale of its row. codes float8 [N, M], scales [N, 1], input_scale [1, 1] where it is static."""

    codes: Tensor
    scales: Tensor
    input_scale: Tensor | None = None
    activation: str = "fp8-token"

    def __post_init__(self) -> None:
        check("codes", self.codes, self.codes.shape, FP8_DTYPES)
        check("scales", self.scales, (*self.codes.shape[:-1], 1), DENSE_DTYPES)
        check_static(self.input_scale, (*self.codes.shape[:-2], 1, 1), self.activation)

    def _units(self) -> dict[str, Units]:
        return {"codes": (1, 1), "scales": (1, None), "input_scale": (None, None)}


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Block(Scaled):
    """w = code * scale of its block of `block` = (rows, columns); blocks at the edges may be partial.

    codes float8 [N, M], scales float [ceil(N / rows), ceil(M / columns)].
    """

    codes: Tensor
    scales: Tensor
    block: tuple[int, int]
    activation: str = "fp8-group"

    def __post_init__(self) -> None:
        check("codes", self.codes, self.codes.shape, FP8_DTYPES)
        n, m = self.shape
        blocks = (-(-n // self.block[0]), -(-m // self.block[1]))
        check("scales", self.scales, (*self.codes.shape[:-2], *blocks), SCALE_DTYPES)
        check_activation(self.activation)

    def _units(self) -> dict[str, Units]:
        return {"codes": (1, 1), "scales": self.block}

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        n, m = self.shape
        rows = self.scales.float().repeat_interleave(self.block[0], -2)[..., :n, :]
        return (self.codes.float() * rows.repeat_interleave(self.block[1], -1)[..., :m]).to(dtype or torch.float32)


# The 16 values of a 4-bit float with 2 bits of exponent and 1 of mantissa (OCP Microscaling formats, version 1.0).
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MX_GROUP = 32


@dataclass(frozen=True, slots=True, eq=False)
class Mxfp4(Record):
    """w = value of the code * 2 ^ (scale - 127), a scale for 32 in-features.

    codes uint8 [N, M / 2]: two codes a byte, the lower half first. scales uint8 [N, M / 32].
    """

    codes: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        check("codes", self.codes, self.codes.shape, (torch.uint8,))
        lead, num_in = self.codes.shape[:-1], self.codes.shape[-1] * 2
        check("scales", self.scales, (*lead, -(-num_in // MX_GROUP)), (torch.uint8,))
        if num_in % MX_GROUP:
            raise FormatError(f"MXFP4 has {MX_GROUP} in-features a scale, which do not divide {num_in}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[-2], self.codes.shape[-1] * 2

    def _units(self) -> dict[str, Units]:
        return {"codes": (1, 2), "scales": (1, MX_GROUP)}

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        table = torch.tensor(FP4_VALUES, device=self.codes.device)
        codes = torch.stack((self.codes & 15, self.codes >> 4), -1).flatten(-2)
        # 255 stands for NaN, as everywhere in this format's scales.
        powers = self.scales.view(torch.float8_e8m0fnu).float().repeat_interleave(MX_GROUP, -1)
        return (table[codes.int()] * powers).to(dtype or torch.float32)


def check(what: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """FormatError unless the tensor has 2 or 3 axes, this shape and one of these dtypes."""
    if tuple(tensor.shape) != tuple(shape) or tensor.dim() not in (2, 3):
        raise FormatError(f"shapes disagree: {what} has {tuple(tensor.shape)}, where {tuple(shape)} is needed")
    if tensor.dtype not in dtypes:
        raise FormatError(f"{what} has dtype {tensor.dtype}; allowed are {', '.join(map(str, dtypes))}")


def check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise FormatError(f"activation {activation!r} is unknown; known are {', '.join(ACTIVATIONS)}")


def check_static(input_scale: Tensor | None, shape: tuple[int, ...], activation: str) -> None:
    """A stored input scale must be there exactly where the activation is static."""
    check_activation(activation)
    if (input_scale is not None) != (activation == "fp8-static"):
        has = "no input_scale" if input_scale is None else "an input_scale"
        raise FormatError(f"activation {activation} with {has}: config and tensors disagree")
    if input_scale is not None:
        check("input_scale", input_scale, shape, DENSE_DTYPES)
