"""AWQ's searched scales, then refined GPTQ on the scaled weights, in AWQ's files: better than either, served alike.

No clip: GPTQ compensates a full range better than it does a clipped one.
"""

from __future__ import annotations

from dataclasses import replace

from tokenmill.quant.block import Block
from tokenmill.quant.method import Feed
from tokenmill.quant.methods import awq, gptq
from tokenmill.quant.recipe import Recipe
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme

NEEDS_DATA = True


def scheme(recipe: Recipe) -> Scheme:
    return awq.scheme(recipe)


def quantize(block: Block, feed: Feed, recipe: Recipe) -> dict[str, Weight]:
    awq.scale(block, feed, recipe)
    return gptq.quantize(block, feed, replace(recipe, refine=recipe.refine is not False))
