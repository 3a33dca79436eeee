"""Integer grids: a scale and a zero per row and group, and codes on them.

Zero always lies inside a group's range, so that groups of one sign keep their values. Scales are rounded to the dtype
they are stored in before any code is computed from them. N out, M in, Q groups along M.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.quant.recipe import Recipe
from tokenmill.weights import packing
from tokenmill.weights.classes import IntGroup

SCALE_DTYPE = torch.float16
MIN_RANGE = 1e-5


@dataclass(frozen=True, slots=True)
class Grid:
    """scales_NQ fp32 (values of SCALE_DTYPE), zeros_NQ fp32 whole numbers in [0, 2^bits - 1]."""

    scales_NQ: Tensor
    zeros_NQ: Tensor
    bits: int
    group: int | None
    symmetric: bool

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def codes(self, weight_NM: Tensor) -> Tensor:
        """Nearest codes, fp32 whole numbers [N, M]."""
        scales, zeros = self._spread(weight_NM.shape[1])
        return (torch.round(weight_NM / scales) + zeros).clamp(0, self.top)

    def nearest(self, weight_NM: Tensor) -> Tensor:
        """The weight rounded to the grid."""
        scales, zeros = self._spread(weight_NM.shape[1])
        return ((torch.round(weight_NM / scales) + zeros).clamp(0, self.top) - zeros) * scales

    def column(self, index: int) -> tuple[Tensor, Tensor]:
        """Scales and zeros [N] of one in-feature."""
        group = 0 if self.group is None else index // self.group
        return self.scales_NQ[:, group], self.zeros_NQ[:, group]

    def weight(self, codes_NM: Tensor) -> IntGroup:
        """The codes as a weight on the CPU."""
        zeros = None if self.symmetric else self.zeros_NQ.to(torch.int16).cpu()
        packed = packing.pack(codes_NM.to(torch.uint8).cpu(), self.bits)
        scales = self.scales_NQ.to(SCALE_DTYPE).cpu()
        return IntGroup(packed, scales, zeros, self.bits, self.group, codes_NM.shape[1])

    def _spread(self, num_in: int) -> tuple[Tensor, Tensor]:
        if self.group is None:
            return self.scales_NQ, self.zeros_NQ
        return tuple(x.repeat_interleave(self.group, 1)[:, :num_in] for x in (self.scales_NQ, self.zeros_NQ))  # type: ignore[return-value]


def make_grid(weight_NM: Tensor, recipe: Recipe) -> Grid:
    """The min-max grid of a weight. FormatError where a scale does not fit SCALE_DTYPE."""
    groups = split_groups(weight_NM, recipe.group)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    top = (1 << recipe.bits) - 1
    if recipe.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scales = ((high - low).clamp(min=MIN_RANGE) / top).to(SCALE_DTYPE).float()
    if not bool(torch.isfinite(scales).all()):
        raise FormatError(f"weights up to {float(high.max()):.3g} need scales beyond {SCALE_DTYPE}")
    zeros = torch.full_like(scales, 1 << (recipe.bits - 1))
    if not recipe.symmetric:
        zeros = torch.round(-low / scales).clamp(0, top)
    return Grid(scales, zeros, recipe.bits, recipe.group, recipe.symmetric)


def split_groups(weight_NM: Tensor, group: int | None) -> Tensor:
    """[N, Q, g]. FormatError where groups do not fill M."""
    num_out, num_in = weight_NM.shape
    size = group or num_in
    if num_in % size:
        raise FormatError(f"{num_in} in-features are not filled by groups of {size}: choose a --w-group-size that does")
    return weight_NM.reshape(num_out, -1, size)


def round_to_grid(weight_NM: Tensor, recipe: Recipe) -> Tensor:
    """Quantized and back, on the weight's own min-max grid."""
    return make_grid(weight_NM, recipe).nearest(weight_NM)
