"""Several linears of one input as one: the rule for q/k/v, gate/up and experts when their classes differ."""

from __future__ import annotations

import torch

from tokenmill.errors import FormatError
from tokenmill.log import get_logger
from tokenmill.weights.classes import Dense, Fp8Tensor
from tokenmill.weights.contract import Weight


def fuse(weights: tuple[Weight, ...], axis: int = 0) -> Weight:
    """The weights joined along an axis, in their own class where that is exact, else as Dense with a warning.

    FP8 weights with different scales become one weight with a scale per row. Dense takes the widest plain dtype among
    the parts, or float32 where all were quantized.
    """
    if len(weights) == 1:
        return weights[0]
    try:
        return weights[0].join(axis, weights[1:])
    except FormatError as error:
        reason = str(error)
    if axis == 0 and all(isinstance(weight, Fp8Tensor) for weight in weights):
        rows = [weight.as_channel() for weight in weights if isinstance(weight, Fp8Tensor)]
        try:
            return rows[0].join(0, tuple(rows[1:]))
        except FormatError as error:
            reason = str(error)
    get_logger().warning("joined as plain numbers, which costs memory: %s", reason)
    dtype = _plain_dtype(weights)
    plain = [Dense(weight.dequantize(dtype)) for weight in weights]
    return plain[0].join(axis, tuple(plain[1:]))


def _plain_dtype(weights: tuple[Weight, ...]) -> torch.dtype:
    held = [weight.value.dtype for weight in weights if isinstance(weight, Dense)]
    if not held:
        return torch.float32
    dtype = held[0]
    for other in held[1:]:
        dtype = torch.promote_types(dtype, other)
    return dtype
