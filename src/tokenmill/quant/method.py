"""What a quantization method is: a module of `quant/methods`, found by its name.

A method gets one block, what flows into it, and a recipe. It may change the block's norms, biases and linears as long
as the block's function stays what it was (scales that move), and returns every linear as a `Weight`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from tokenmill import find
from tokenmill.quant.block import Block
from tokenmill.quant.recipe import Recipe
from tokenmill.weights.contract import Weight
from tokenmill.weights.convert import TARGETS
from tokenmill.weights.scheme import Scheme

METHODS = "tokenmill.quant.methods"


@dataclass(slots=True)
class Feed:
    """The residuals [S, D] that enter a block: of the plain model, and of the model quantized up to here.

    Both are empty for methods that need no data.
    """

    plain: list[Tensor]
    quantized: list[Tensor]

    def searched(self, tokens: int) -> list[Tensor]:
        """As many plain sequences as `tokens` allow, at least one."""
        taken: list[Tensor] = []
        total = 0
        for stream in self.plain:
            if taken and total + len(stream) > tokens:
                break
            taken.append(stream)
            total += len(stream)
        return taken


class Method(Protocol):
    """NEEDS_DATA: without calibration tokens the method refuses."""

    NEEDS_DATA: bool

    def scheme(self, recipe: Recipe) -> Scheme: ...

    def quantize(self, block: Block, feed: Feed, recipe: Recipe) -> dict[str, Weight]: ...


def load_method(name: str) -> Method:
    """ConfigError lists what there is. "awq+gptq" is awq_gptq."""
    return cast(Method, find.load(METHODS, name.lower().replace("+", "_").replace("-", "_")))


def integer_scheme(recipe: Recipe, default: str) -> Scheme:
    """The scheme of integer weights in the recipe's format, or the method's own."""
    name, dialect = TARGETS[recipe.to or default]
    symmetric = recipe.symmetric and name != "awq"
    if not dialect:
        dialect = "gptq" if symmetric else "gptq_v2"
    return Scheme(name, "int", dialect, recipe.bits, recipe.group, symmetric=symmetric)


def settle(block: Block, name: str, weight: Weight) -> Weight:
    """Puts the quantized numbers where the block computes with them."""
    device = block.linears[name].device
    block.linears[name] = weight.to(device).dequantize(torch.float32)
    return weight
