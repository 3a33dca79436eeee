"""FP8 e4m3 weights from their largest values: one scale for all, per out-feature, or per block. No data.

Inputs are quantized when the model runs: per tensor, per token, or per token and 128 channels, as the scheme says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.errors import ConfigError
from tokenmill.quant.block import Block
from tokenmill.quant.method import Feed, settle
from tokenmill.quant.recipe import Recipe
from tokenmill.weights.classes import Fp8Block, Fp8Channel, Fp8Tensor
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme

NEEDS_DATA = False
E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
SMALLEST = 1e-6


def scheme(recipe: Recipe) -> Scheme:
    if recipe.fp8 == "channel":
        return Scheme("smooth_quant", "fp8-channel", "float8_e4m3fn", 8, activation="fp8-token")
    if recipe.fp8 == "tensor":
        return Scheme("fp8", "fp8-tensor", bits=8, activation="fp8-tensor")
    return Scheme("fp8", "fp8-block", bits=8, block=recipe.block, activation="fp8-group")


def quantize(block: Block, feed: Feed, recipe: Recipe) -> dict[str, Weight]:
    _check_heads(block, recipe)
    return {name: settle(block, name, make(weight, recipe).to("cpu")) for name, weight in list(block.linears.items())}


def _check_heads(block: Block, recipe: Recipe) -> None:
    """One linear that holds q, k and v is cut between heads when it is served: a head must not share an FP8 block."""
    head_dim = block.facts.arch.attention.head_dim
    if recipe.fp8 == "block" and len(block.facts.names("qkv")) == 1 and head_dim % recipe.block[0]:
        raise ConfigError(f"blocks of {recipe.block[0]} rows cut heads of {head_dim}: use --block-size {head_dim}")


def make(weight_NM: Tensor, recipe: Recipe) -> Fp8Tensor | Fp8Channel | Fp8Block:
    if recipe.fp8 == "block":
        return by_block(weight_NM, recipe.block)
    return by_channel(weight_NM) if recipe.fp8 == "channel" else by_tensor(weight_NM)


def by_tensor(weight_NM: Tensor) -> Fp8Tensor:
    scales = _scales(weight_NM.abs().amax().reshape(1, 1))
    return Fp8Tensor((weight_NM / scales).to(E4M3), scales)


def by_channel(weight_NM: Tensor) -> Fp8Channel:
    scales = _scales(weight_NM.abs().amax(1, keepdim=True))
    return Fp8Channel((weight_NM / scales).to(E4M3), scales)


def by_block(weight_NM: Tensor, block: tuple[int, int]) -> Fp8Block:
    """Blocks at the edges may be partial."""
    (num_out, num_in), (rows, columns) = weight_NM.shape, block
    padded = functional.pad(weight_NM.abs(), (0, -num_in % columns, 0, -num_out % rows))
    largest = padded.reshape(len(padded) // rows, rows, -1, columns).amax((1, 3))
    scales = _scales(largest)
    spread = scales.repeat_interleave(rows, 0)[:num_out].repeat_interleave(columns, 1)[:, :num_in]
    return Fp8Block((weight_NM / spread).to(E4M3), scales, block)


def _scales(largest: Tensor) -> Tensor:
    return largest.clamp(min=SMALLEST) / LARGEST
