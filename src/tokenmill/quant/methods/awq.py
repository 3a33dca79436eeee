"""AWQ (arXiv 2306.00978) as its authors run it: searched scales, then searched clips, then rounding to nearest.

Scales are searched on the inputs of the plain model. Queries and keys are not clipped: their errors multiply.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.quant.block import SITES, Block, BlockFacts
from tokenmill.quant.method import Feed, integer_scheme
from tokenmill.quant.methods import rtn
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.scaling import apply
from tokenmill.quant.search import clip_weight, group_grams, search_scales
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme

NEEDS_DATA = True


def scheme(recipe: Recipe) -> Scheme:
    return integer_scheme(recipe, "awq" if recipe.bits == 4 else "compressed-tensors")


def quantize(block: Block, feed: Feed, recipe: Recipe) -> dict[str, Weight]:
    scale(block, feed, recipe)
    if recipe.clip:
        clip(block, feed, recipe)
    return rtn.quantize(block, feed, recipe)


def scale(block: Block, feed: Feed, recipe: Recipe) -> None:
    """Searches every move on the block as it is, then applies them all."""
    for move, scales_M in search_scales(block, feed, recipe).items():
        apply(block, move, scales_M)


def clip(block: Block, feed: Feed, recipe: Recipe) -> None:
    """Clips what may be clipped, on inputs of the scaled, unclipped block."""
    clipped: dict[str, Tensor] = {}
    residuals = feed.searched(recipe.search_tokens)
    for site in SITES:
        names = [name for name in block.facts.names(site) if may_clip(block.facts, site, name)]
        if names:
            grams = group_grams([block.site_input(site, residual) for residual in residuals], recipe.group)
            clipped |= {name: clip_weight(block.linears[name], grams, recipe) for name in names}
        if site == "out":
            residuals = [block.advance(site, residual) for residual in residuals]
    block.linears |= clipped


def may_clip(facts: BlockFacts, site: str, name: str) -> bool:
    """Everything but linears with rows of q or k."""
    if site != "qkv":
        return True
    start = 0
    for other, (num_out, _) in facts.attention_names.qkv.shapes(facts.attention).items():
        if other == name:
            values = facts.qkv_rows[2]
            return int(((values >= start) & (values < start + num_out)).sum()) == num_out
        start += num_out
    raise LookupError(name)
