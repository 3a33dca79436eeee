"""The orthonormal Hadamard rotation of head vectors, which spreads outlier channels before 4-bit quantization.

H is symmetric and its own inverse: rotate(rotate(x)) = x. With q and K both rotated the scores are unchanged.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def hadamard(size: int, device: torch.device) -> Tensor:
    """Sylvester's matrix of a power of two, scaled to be orthonormal: fp32 [K, K]."""
    if size & (size - 1):
        raise ValueError(f"no Hadamard rotation of {size} channels; it needs a power of two")
    matrix = torch.ones(1, 1, dtype=torch.float32, device=device)
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    scaled: Tensor = matrix * size**-0.5
    return scaled


def rotate(x: Tensor) -> Tensor:
    """x [..., K] times H, in fp32."""
    return x.float() @ hadamard(x.shape[-1], x.device)
