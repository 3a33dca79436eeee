"""Integer grids: a scale and a zero per row and group, and codes on them.

Zero always lies inside a group's range, so that groups of one sign keep their values. Scales are rounded to the dtype
they are stored in before any code is computed from them. N out, M in, Q groups along M.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.quant.recipe import Recipe
from tokenmill.weights import packing
from tokenmill.weights.classes import IntGroup

SCALE_DTYPE = torch.float16
MIN_RANGE = 1e-5
SEARCH_STEPS = 12
SEARCH_LEAST = 0.7


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

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        return self.scales_NQ, self.zeros_NQ

    def codes(self, weight_NM: Tensor) -> Tensor:
        """Nearest codes, fp32 whole numbers [N, M]."""
        scales, zeros = self.spread(weight_NM.shape[1])
        return (torch.round(weight_NM / scales) + zeros).clamp(0, self.top)

    def nearest(self, weight_NM: Tensor) -> Tensor:
        """The weight rounded to the grid."""
        scales, zeros = self.spread(weight_NM.shape[1])
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

    def spread(self, num_in: int) -> tuple[Tensor, Tensor]:
        """Scales and zeros of every column, [N, M] or (one group) [N, 1]."""
        if self.group is None:
            return self.scales_NQ, self.zeros_NQ
        return tuple(x.repeat_interleave(self.group, 1)[:, :num_in] for x in (self.scales_NQ, self.zeros_NQ))  # type: ignore[return-value]


def make_grid(weight_NM: Tensor, recipe: Recipe) -> Grid:
    """The min-max grid of a weight. FormatError where a scale does not fit SCALE_DTYPE."""
    low, high = _range(split_groups(weight_NM, recipe.group), recipe)
    return _grid(low, high, recipe)


def search_grid(weight_NM: Tensor, importance_M: Tensor, recipe: Recipe) -> Grid:
    """Per row and group, the range of least squared rounding error, each column's weighted by its importance.

    Tried are the min-max range and narrower ones, down to SEARCH_LEAST of it.
    """
    groups, weights = split_groups(weight_NM, recipe.group), split_groups(importance_M[None], recipe.group)[0]
    low, high = _range(groups, recipe)
    best, least = _grid(low, high, recipe), torch.full_like(low, torch.inf)
    for step in range(SEARCH_STEPS):
        shrink = 1 - (1 - SEARCH_LEAST) * step / (SEARCH_STEPS - 1)
        grid = _grid(low * shrink, high * shrink, recipe)
        error = split_groups(grid.nearest(weight_NM) - weight_NM, recipe.group).square_().mul_(weights).sum(-1)
        better = error < least
        scales, zeros = (torch.where(better, new, old) for new, old in zip(grid.parts, best.parts, strict=True))
        best, least = replace(best, scales_NQ=scales, zeros_NQ=zeros), torch.minimum(error, least)
    return best


def _range(groups_NQg: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Smallest and largest of every group, zero within."""
    low, high = groups_NQg.amin(-1).clamp(max=0), groups_NQg.amax(-1).clamp(min=0)
    if recipe.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    return low, high


def _grid(low: Tensor, high: Tensor, recipe: Recipe) -> Grid:
    top = (1 << recipe.bits) - 1
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
