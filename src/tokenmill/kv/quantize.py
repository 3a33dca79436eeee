"""Asymmetric quantization of head vectors, one scale and minimum per token and head.

LMDeploy's formula with its zero written as a minimum: s = (max - min) / Q, q = floor((x - min) / s + 0.5),
x' = q s + min; with z = -min / s that is (q - z) s. A minimum stays exact enough in fp16 where z of a nearly constant
vector would overflow, and a constant vector comes back as its minimum. Scale and minimum are rounded to fp16 before the
codes are made, so that rounding them costs no accuracy inside the range.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SCALE = 2.0**-14


def quantize(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """x [..., K] -> codes uint8 [..., K] in 0..levels and params fp16 [..., 2]: scale, minimum."""
    x = x.float()
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    low = low.half()
    scale = ((high - low.float()) / levels).clamp(min=LEAST_SCALE).half()
    codes = ((x - low.float()) / scale.float() + 0.5).floor_().clamp_(0, levels)
    return codes.to(torch.uint8), torch.cat((scale, low), -1)


def dequantize(codes: Tensor, params: Tensor) -> Tensor:
    """fp32 [..., K] of codes [..., K] and params [..., 2]. Params that are not finite give values that are not."""
    scale, low = params.float().unbind(-1)
    return torch.addcmul(low[..., None], codes.float(), scale[..., None])


def pack4(codes: Tensor) -> Tensor:
    """Two codes of 0..15 in a byte: low nibble channel d, high nibble channel d + K / 2."""
    low, high = codes.chunk(2, -1)
    return low | (high << 4)


def unpack4(packed: Tensor) -> Tensor:
    return torch.cat((packed & 15, packed >> 4), -1)
