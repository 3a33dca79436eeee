"""Linears on a CPU: weights are held so that a step reads few bytes and unpacks none, and the result is still that of
the dequantized fp32 matrix.

A matrix whose numbers are half precision numbers (a 16-bit checkpoint's, or codes, apart from their scales) is packed
once for FBGEMM's fp16 product: activations and sums are fp32, and half the bytes are read. Scales are applied to sums:
one of the whole matrix or one a row after the product, those of groups after the product of each group's columns. What
does not fit that, and groups too small to be worth a product each, is held as a matrix in fp32.

N out features, M in features, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenmill.kernels.bind import BindFacts
from tokenmill.kernels.ops import Prepared
from tokenmill.kernels.reference.prepare_linear import DenseLinear
from tokenmill.weights.classes import Dense, Fp8Block, Fp8Channel, Fp8Tensor, Int8Channel, IntGroup
from tokenmill.weights.contract import Weight

# Below so many numbers a group's product costs more than its bytes save (measured: equal near 2^17).
LEAST_SLAB = 1 << 18
# Powers of two: below fp16's largest number, and within fp32's range with room on both sides.
MOST_HALF, MOST_POWER = 15, 120


@dataclass(frozen=True, slots=True)
class Slab:
    """Columns of a matrix as half precision numbers [N, width], and what multiplies each row's sums: fp32 [N], or one
    for all (None: 1)."""

    codes_NM: Tensor
    scale: Tensor | None


def refuses(facts: BindFacts) -> str | None:
    return None if facts.roomy else "memory is too small to hold weights unpacked"


def prepare_linear(weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Prepared:
    """As the reference; weights of experts come one at a time."""
    if isinstance(weight, Dense) and dtype != torch.float32:
        return DenseLinear(weight, bias, dtype)
    order_M, slabs = slabs_of(weight) if has_half() else (None, None)
    if slabs is not None:
        return HalfLinear(weight, bias, dtype, order_M, slabs)
    return DenseLinear(weight, bias, dtype) if isinstance(weight, Dense) else HeldLinear(weight, bias, dtype)


def has_half() -> bool:
    """FBGEMM is a part of torch on x86 alone."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class HeldLinear:
    """Any class as its dequantized matrix in fp32, made once."""

    def __init__(self, weight: Weight, bias: Tensor | None, dtype: torch.dtype):
        self._linear, self._dtype = DenseLinear(weight, bias, torch.float32), dtype

    def __call__(self, x_TM: Tensor) -> Tensor:
        return self._linear(x_TM.float()).to(self._dtype)

    def load(self, weight: Weight, bias: Tensor | None) -> None:
        self._linear.load(weight, bias)


class HalfLinear:
    """Products of slabs, scaled and summed in fp32. `order_M`: in-features in the slabs' order (None: their own)."""

    def __init__(
        self, weight: Weight, bias: Tensor | None, dtype: torch.dtype, order_M: Tensor | None, slabs: tuple[Slab, ...]
    ):
        self.shape, self._dtype = weight.shape, dtype
        self._bias_N = None if bias is None else bias.float()
        self._take(order_M, slabs)

    def _take(self, order_M: Tensor | None, slabs: tuple[Slab, ...]) -> None:
        self._order_M = order_M
        self._widths = [slab.codes_NM.shape[1] for slab in slabs]
        self._packed = [_pack(slab.codes_NM) for slab in slabs]
        self._scales = [slab.scale for slab in slabs]
        # Packed numbers are no tensor, so that whoever counts memory must be told.
        self.packed_bytes = 2 * self.shape[0] * self.shape[1]

    def __call__(self, x_TM: Tensor) -> Tensor:
        x_TM = x_TM if x_TM.dtype == torch.float32 else x_TM.float()
        y_TN = self._sum(x_TM if self._order_M is None else x_TM.index_select(-1, self._order_M))
        if self._bias_N is not None:
            y_TN += self._bias_N
        return y_TN if self._dtype == torch.float32 else y_TN.to(self._dtype)

    def _sum(self, x_TM: Tensor) -> Tensor:
        if len(self._packed) == 1:
            y_TN, scale = _product(x_TM, self._packed[0]), self._scales[0]
            return y_TN if scale is None else y_TN.mul_(scale)
        parts = zip(torch.split(x_TM, self._widths, -1), self._packed, self._scales, strict=True)
        y_TN = x_TM.new_zeros(*x_TM.shape[:-1], self.shape[0])
        for part_TM, packed, scale in parts:
            assert scale is not None
            y_TN.addcmul_(_product(part_TM, packed), scale)
        return y_TN

    def load(self, weight: Weight, bias: Tensor | None) -> None:
        if weight.shape != self.shape or (bias is None) != (self._bias_N is None):
            raise ValueError(f"a linear of {self.shape} cannot become one of {weight.shape}, or its bias be added or "
                             "dropped")
        order_M, slabs = slabs_of(weight)
        if slabs is None:
            raise ValueError(f"{type(weight).__name__} does not fit into half precision numbers, as what it replaces")
        self._take(order_M, slabs)
        self._bias_N = None if bias is None else bias.float()


def _pack(codes_NM: Tensor) -> Any:
    return torch.ops.quantized.linear_prepack_fp16.default(codes_NM.float().contiguous(), None)


def _product(x_TM: Tensor, packed: Any) -> Tensor:
    y_TN: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x_TM, packed)
    return y_TN


# ---------------------------------------------------------------- a weight as slabs


def slabs_of(weight: Weight) -> tuple[Tensor | None, tuple[Slab, ...] | None]:
    """The order of in-features, and the slabs; None where half precision numbers do not hold the weight exactly."""
    if isinstance(weight, (Int8Channel, Fp8Channel, Fp8Tensor)):
        return None, (Slab(weight.codes, weight.scales.float().expand(weight.shape[0], 1).flatten()),)
    if isinstance(weight, IntGroup):
        return _of_groups(weight)
    if isinstance(weight, Fp8Block):
        return None, _of_blocks(weight)
    whole = exact_half(weight.dequantize(torch.float32))
    return None, None if whole is None else (whole,)


def _of_groups(weight: IntGroup) -> tuple[Tensor | None, tuple[Slab, ...] | None]:
    """Codes less their zeros are small integers; a group's columns share a scale a row."""
    (N, M), Q = weight.shape, weight.num_groups
    if Q > 1 and N * M < LEAST_SLAB * Q:
        return None, None
    group_M = torch.arange(M) // (weight.group or M) if weight.g_idx is None else weight.g_idx[0].long()
    order_M = None if weight.g_idx is None else group_M.argsort(stable=True)
    codes_NM = weight.unpacked().float() - weight.filled_zeros().float()[:, group_M]
    if order_M is not None:
        codes_NM = codes_NM[:, order_M]
    widths = torch.bincount(group_M, minlength=Q).tolist()
    pairs = zip(torch.split(codes_NM, widths, 1), weight.scales.float().unbind(1), strict=True)
    return order_M, tuple(Slab(codes, scale.contiguous()) for codes, scale in pairs if codes.shape[1])


def _of_blocks(weight: Fp8Block) -> tuple[Slab, ...] | None:
    (N, M), (rows, columns) = weight.shape, weight.block
    if N * min(columns, M) < LEAST_SLAB:
        return None
    scales_NQ = weight.scales.float().repeat_interleave(rows, 0)[:N]
    pairs = zip(torch.split(weight.codes.float(), columns, 1), scales_NQ.unbind(1), strict=True)
    return tuple(Slab(codes, scale.contiguous()) for codes, scale in pairs)


def exact_half(matrix_NM: Tensor) -> Slab | None:
    """The matrix as it is, or times the power of two that brings its largest number near fp16's largest; None where
    digits are lost either way."""
    largest = float(matrix_NM.abs().amax())
    if not largest < math.inf:
        return None
    if torch.equal(matrix_NM.half().float(), matrix_NM):
        return Slab(matrix_NM, None)
    power = MOST_HALF - math.frexp(largest)[1]
    scaled_NM = matrix_NM * 2.0**power if abs(power) < MOST_POWER else matrix_NM
    if not torch.equal(scaled_NM.half().float(), scaled_NM):
        return None
    return Slab(scaled_NM, torch.tensor(2.0**-power))
