"""SmoothQuant (arXiv 2211.10438), W8A8: input outliers move from norms into weights, then both are rounded to 8 bits.

s = max|x|^alpha / max|w|^(1 - alpha) per channel; alpha is searched per norm, with "no smoothing" among the choices.
Weights get one scale per out-feature; inputs are quantized per token when the model runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.quant.block import Block
from tokenmill.quant.method import Feed, settle
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.scaling import Move, apply, moves
from tokenmill.quant.stats import Magnitudes
from tokenmill.weights.classes import Int8Channel
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme

NEEDS_DATA = True
ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
TOP = 127.0
SMALLEST = 1e-5


def scheme(recipe: Recipe) -> Scheme:
    return Scheme("smooth_quant", "int8-channel", "int8", 8, activation="int8-token")


def quantize(block: Block, feed: Feed, recipe: Recipe) -> dict[str, Weight]:
    smooth(block, feed, recipe)
    return {name: settle(block, name, by_channel(weight).to("cpu")) for name, weight in list(block.linears.items())}


def by_channel(weight_NM: Tensor) -> Int8Channel:
    scales = weight_NM.abs().amax(1, keepdim=True).clamp(min=1e-7) / TOP
    return Int8Channel(torch.round(weight_NM / scales).clamp(-TOP, TOP).to(torch.int8), scales)


def by_token(x_SM: Tensor) -> Tensor:
    """Inputs as they are when the model runs: rounded to int8, one scale a token."""
    scales = x_SM.abs().amax(1, keepdim=True).clamp(min=1e-7) / TOP
    return torch.round(x_SM / scales).clamp(-TOP, TOP) * scales


def smooth(block: Block, feed: Feed, recipe: Recipe) -> None:
    """Moves scales out of the norms."""
    residuals, searched = feed.plain, feed.searched(recipe.search_tokens)
    for move in moves(block.facts):
        if move.site not in ("qkv", "gate_up"):
            continue
        if move.site == "gate_up":
            residuals = [block.advance("out", residual) for residual in residuals]
            searched = residuals[: len(searched)]
        sums = Magnitudes(block.linears[move.linears[0]].shape[1], residuals[0].device)
        for residual in residuals:
            sums.add(block.site_input(move.site, residual))
        inputs = [block.site_input(move.site, residual) for residual in searched]
        apply(block, move, _best(block, move, sums.largest, inputs))


def _best(block: Block, move: Move, largest_M: Tensor, inputs: list[Tensor]) -> Tensor:
    weights = [block.linears[name] for name in move.linears]
    columns = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp(min=SMALLEST)
    candidates = [torch.ones_like(largest_M)]
    for alpha in ALPHAS:
        candidates.append((largest_M.clamp(min=SMALLEST) ** alpha / columns ** (1 - alpha)).clamp(min=SMALLEST))
    losses = [sum(_error(w, s, x) for w in weights for x in inputs) for s in candidates]
    return candidates[min(range(len(losses)), key=losses.__getitem__)]


def _error(weight_NM: Tensor, scales_M: Tensor, x_SM: Tensor) -> float:
    """Squared output error of a linear with both sides rounded."""
    made = by_channel(weight_NM * scales_M).dequantize()
    return float((by_token(x_SM / scales_M) @ made.T - x_SM @ weight_NM.T).square().sum())
