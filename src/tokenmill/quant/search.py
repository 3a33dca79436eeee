"""The AWQ searches (arXiv 2306.00978): scales by the error of the module they touch, clips by the error of each row.

The candidates are a^r and, with `duo`, a^r / w^(1 - r), where a is a channel's mean input and w its mean weight against
the largest of its group, r in 0, 1/n, .. (n - 1)/n. r = 0 of the first form is plain rounding, so on what it measured
the search never loses to that. N out, M in, Q groups of g along M.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenmill.quant.block import Block
from tokenmill.quant.grid import make_grid, round_to_grid, split_groups
from tokenmill.quant.method import Feed
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.scaling import Move, moves, tie
from tokenmill.quant.stats import Gram, Magnitudes, output_error

SMALLEST = 1e-4
FIRST_SHARE = 4
FINALISTS = 8
CLIP_STEPS = 10
CLIP_GRID = 20
Loss = Callable[[Tensor], float]


def search_scales(block: Block, feed: Feed, recipe: Recipe) -> dict[Move, Tensor]:
    """The best scale of every move, each searched on the block as it is. The block is left as it was."""
    found: dict[Move, Tensor] = {}
    residuals, searched = feed.plain, feed.searched(recipe.search_tokens)
    for move in moves(block.facts):
        if move.site == "gate_up":
            residuals = [block.advance("out", residual) for residual in residuals]
            searched = residuals[: len(searched)]
        num_in = block.linears[move.linears[0]].shape[1]
        sums, gram = Magnitudes(num_in, residuals[0].device), Gram(num_in, residuals[0].device)
        whole = move.site in ("qkv", "gate_up")
        for residual in residuals:
            x = block.site_input(move.site, residual)
            sums.add(x)
            if not whole:
                gram.add(x)
        candidates = _candidates(block, move, sums.mean(), recipe)
        if whole:
            found[move] = _best_by_module(block, move, candidates, searched, recipe)
        else:
            found[move] = _best(candidates, _linear_loss(block, move, gram.mean(), recipe))
    return found


def _candidates(block: Block, move: Move, mean_M: Tensor, recipe: Recipe) -> list[Tensor]:
    activation = tie(block.facts, move, mean_M)
    weight = tie(block.facts, move, weight_means([block.linears[name] for name in move.linears], recipe.group))
    ratios = [i / recipe.ratios for i in range(recipe.ratios)]
    plain = [_normal(activation**r) for r in ratios]
    return plain + ([_normal(activation**r / (weight ** (1 - r) + SMALLEST)) for r in ratios] if recipe.duo else [])


def _normal(scales: Tensor) -> Tensor:
    """Around 1, and never so small that a division explodes."""
    scales = scales.clamp(min=SMALLEST)
    return scales / (scales.max() * scales.min()).sqrt()


def weight_means(weights: list[Tensor], group: int | None) -> Tensor:
    """Per in-feature [M]: the mean over all rows of |w| against the largest |w| of its group."""
    joined = torch.cat(weights)
    groups = split_groups(joined.abs(), group)
    relative = groups / (groups.amax(-1, keepdim=True) + 1e-6)
    return relative.reshape(joined.shape).mean(0)


def _best(candidates: list[Tensor], loss: Loss) -> Tensor:
    """The candidate of least loss; the first of equals."""
    losses = [loss(scales) for scales in candidates]
    return candidates[min(range(len(losses)), key=losses.__getitem__)]


def _best_by_module(
    block: Block, move: Move, candidates: list[Tensor], residuals: list[Tensor], recipe: Recipe
) -> Tensor:
    """All candidates on a quarter of the windows, the best of them and plain rounding on the rest as well.

    Running a whole module is what a search costs: this takes two fifths of the time.
    """
    first = max(1, len(residuals) // FIRST_SHARE)
    loss = _module_loss(block, move, residuals[:first], recipe)
    losses = [loss(scales) for scales in candidates]
    kept = sorted(range(len(candidates)), key=losses.__getitem__)[:FINALISTS]
    kept = sorted({0, *kept})
    if first < len(residuals):
        rest = _module_loss(block, move, residuals[first:], recipe)
        losses = [loss + rest(candidates[i]) if i in kept else torch.inf for i, loss in enumerate(losses)]
    return candidates[min(kept, key=losses.__getitem__)]


def _scaled_round(weight_NM: Tensor, scales_M: Tensor, recipe: Recipe) -> Tensor:
    return round_to_grid(weight_NM * scales_M, recipe) / scales_M


def _module_loss(block: Block, move: Move, residuals: list[Tensor], recipe: Recipe) -> Loss:
    """Squared error of the whole attention, or the whole MLP, when the move's linears are rounded."""
    module = block.attention_out if move.site == "qkv" else block.mlp_out
    inputs = [block.site_input(move.site, residual) for residual in residuals]
    wanted = [module(x) for x in inputs]

    def loss(scales_M: Tensor) -> float:
        kept = dict(block.linears)
        for name in move.linears:
            block.linears[name] = _scaled_round(kept[name], scales_M, recipe)
        total = sum(float((module(x) - y).square().sum()) for x, y in zip(inputs, wanted, strict=True))
        block.linears = kept
        return total

    return loss


def _linear_loss(block: Block, move: Move, gram_MM: Tensor, recipe: Recipe) -> Loss:
    """Squared output error of the move's linears, over all calibration tokens at once through their Gram matrix."""

    def loss(scales_M: Tensor) -> float:
        deltas = (_scaled_round(block.linears[n], scales_M, recipe) - block.linears[n] for n in move.linears)
        return sum(float(output_error(delta, gram_MM).sum()) for delta in deltas)

    return loss


def clip_weight(weight_NM: Tensor, grams_Qgg: Tensor, recipe: Recipe) -> Tensor:
    """The weight clamped, per row and group, where that lowers the rounding's output error within the group.

    grams_Qgg: mean of x x^T of each group's inputs. Clamps go from the largest |w| down to just over a half of it.
    """
    groups = split_groups(weight_NM, recipe.group)
    largest = groups.abs().amax(-1, keepdim=True)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    for step in range(CLIP_STEPS):
        limit = (1 - step / CLIP_GRID) * largest
        clamped = torch.minimum(torch.maximum(groups, -limit), limit).reshape(weight_NM.shape)
        delta = split_groups(make_grid(clamped, recipe).nearest(clamped) - weight_NM, recipe.group)
        error = (torch.einsum("nqg,qgh->nqh", delta, grams_Qgg) * delta).sum(-1, keepdim=True)
        better = error < least
        best, least = torch.where(better, limit, best), torch.where(better, error, least)
    return torch.minimum(torch.maximum(groups, -best), best).reshape(weight_NM.shape)


def group_grams(inputs: list[Tensor], group: int | None) -> Tensor:
    """Mean of x x^T within every group of in-features, [Q, g, g]."""
    total, tokens = torch.zeros(()), 0
    for x_SM in inputs:
        x = split_groups(x_SM, group)
        total = total.to(x.device) + torch.einsum("sqg,sqh->qgh", x, x)
        tokens += len(x)
    return total / tokens
