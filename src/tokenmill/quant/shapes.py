"""Whether a model's linears can be written as asked: their shapes tell before hours are spent on it. N out, M in."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm

import torch

from tokenmill.errors import ConfigError
from tokenmill.quant.grid import make_grid
from tokenmill.quant.recipe import Recipe
from tokenmill.weights.classes import IntGroup
from tokenmill.weights.convert import write_linear
from tokenmill.weights.scheme import Scheme

USUAL_GROUPS = (128, 64, 32, 16)
# Codes of any width fill whole 32-bit words at multiples of it.
PACK = 32


def check_shapes(scheme: Scheme, recipe: Recipe, linears: Mapping[str, tuple[int, int]]) -> None:
    """ConfigError where groups do not fill a row, FormatError where the disk format does not pack a shape."""
    if scheme.weight != "int":
        return
    for name, (_, num_in) in linears.items():
        if recipe.group and num_in % recipe.group:
            raise ConfigError(
                f"{name} has {num_in} in-features, which groups of {recipe.group} do not fill: "
                f"use --w-group-size {_fitting(linears)}"
            )
    for name, (num_out, num_in) in linears.items():
        write_linear(name, _small(num_out, num_in, recipe), scheme)


def _fitting(linears: Mapping[str, tuple[int, int]]) -> str:
    sizes = [str(g) for g in USUAL_GROUPS if all(num_in % g == 0 for _, num_in in linears.values())]
    return " or ".join([*sizes, "-1 (one scale a row)"])


def _small(num_out: int, num_in: int, recipe: Recipe) -> IntGroup:
    """A weight that packs as one of this shape does: the same remainders, no more. Its zeros are legal everywhere."""
    columns = lcm(PACK, recipe.group or 1)
    weight_NM = -torch.ones(num_out % PACK or PACK, num_in % columns or columns)
    grid = make_grid(weight_NM, recipe)
    return grid.weight(grid.codes(weight_NM))
