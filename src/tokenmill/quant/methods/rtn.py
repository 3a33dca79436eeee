"""Round to nearest on min-max grids: no data, the baseline of everything else."""

from __future__ import annotations

from tokenmill.quant.block import Block
from tokenmill.quant.grid import make_grid
from tokenmill.quant.method import Feed, integer_scheme, settle
from tokenmill.quant.recipe import Recipe
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme

NEEDS_DATA = False


def scheme(recipe: Recipe) -> Scheme:
    return integer_scheme(recipe, "awq" if recipe.bits == 4 else "compressed-tensors")


def quantize(block: Block, feed: Feed, recipe: Recipe) -> dict[str, Weight]:
    made: dict[str, Weight] = {}
    for name in list(block.linears):
        grid = make_grid(block.linears[name], recipe)
        made[name] = settle(block, name, grid.weight(grid.codes(block.linears[name])))
    return made
