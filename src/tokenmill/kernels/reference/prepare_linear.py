"""Linears of any weight class in plain torch. `Dense` runs as it is; every other class is dequantized in fp32 at each
call and multiplied, so that a new class is served at once and keeps its small memory.

A class whose arithmetic is not that of its dequantized matrix (quantized activations) has its own module here:
`linear_<class>.py` with `prepare(weight, bias, dtype) -> Prepared`, found by the class's name (Int8Channel ->
linear_int8_channel).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill import find
from tokenmill.kernels.ops import Prepared
from tokenmill.weights.contract import Weight

REFERENCE = "tokenmill.kernels.reference"


def prepare_linear(weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Prepared:
    """A callable x_TM -> x W^T + bias, in `dtype`. The weight must already lie where x will be."""
    name = type(weight).__name__
    own = "linear_" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if name == "Dense":
        return DenseLinear(weight, bias, dtype)
    if own in find.names(REFERENCE):
        prepared: Prepared = find.load(REFERENCE, own).prepare(weight, bias, dtype)
        return prepared
    return DequantLinear(weight, bias, dtype)


class DenseLinear:
    """The weight as one matrix [N, M] in the model's dtype."""

    def __init__(self, weight: Weight, bias: Tensor | None, dtype: torch.dtype):
        self.weight_NM = weight.dequantize(dtype).contiguous()
        self.bias_N = None if bias is None else bias.to(self.weight_NM.device, dtype)

    def __call__(self, x_TM: Tensor) -> Tensor:
        return functional.linear(x_TM, self.weight_NM, self.bias_N)

    def load(self, weight: Weight, bias: Tensor | None) -> None:
        self.weight_NM.copy_(weight.dequantize(self.weight_NM.dtype))
        _load_bias(self.bias_N, bias)


class DequantLinear:
    """The weight as it was stored; dequantized at each call. Products are summed in fp32."""

    def __init__(self, weight: Weight, bias: Tensor | None, dtype: torch.dtype):
        self.weight = weight
        self.dtype = dtype
        self.bias_N = None if bias is None else bias.float()

    def __call__(self, x_TM: Tensor) -> Tensor:
        return functional.linear(x_TM.float(), self.weight.dequantize(torch.float32), self.bias_N).to(self.dtype)

    def load(self, weight: Weight, bias: Tensor | None) -> None:
        if type(weight) is not type(self.weight) or weight.shape != self.weight.shape:
            raise ValueError(f"{type(weight).__name__} {weight.shape} cannot replace {type(self.weight).__name__} "
                             f"{self.weight.shape}")
        self.weight = weight
        _load_bias(self.bias_N, bias)


def _load_bias(held: Tensor | None, bias: Tensor | None) -> None:
    if (held is None) != (bias is None):
        raise ValueError("a linear's bias can be replaced, not added or dropped")
    if held is not None and bias is not None:
        held.copy_(bias)
