"""Random numbers that depend on (seed, position, token) and on nothing else: not on the batch, the slot or the device.

A key of 64 bits is mixed from the row's seed and position (the finalizer of SplitMix64, Steele et al. 2014); every
token of the vocabulary then gets 31 bits from a 32-bit integer hash (multiply and xor-shift, after C. Wellons' low-
bias search) into which both halves of the key enter at different rounds. Integer arithmetic wraps alike on CPU and
CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _s64(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _s32(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


_GOLDEN = _s64(0x9E3779B97F4A7C15)
_MIX1 = _s64(0xBF58476D1CE4E5B9)
_MIX2 = _s64(0x94D049BB133111EB)
_STRIDE32 = _s32(0x9E3779B1)
_HASH1 = _s32(0x7FEB352D)
_HASH2 = _s32(0x846CA68B)
# The largest float32 below 1: log1p(-u) stays finite.
_U_MAX = 1.0 - 2.0**-24


def row_keys(seeds_R: Tensor, positions_R: Tensor) -> Tensor:
    """int64 [R] keys from int64 seeds and positions."""
    z = seeds_R + (positions_R.long() + 1) * _GOLDEN
    z = (z ^ _shift64(z, 30)) * _MIX1
    z = (z ^ _shift64(z, 27)) * _MIX2
    return z ^ _shift64(z, 31)


def exponential(keys_R: Tensor, num_tokens: int) -> Tensor:
    """fp32 [R, V] of independent Exp(1) draws, finite and above 0."""
    low = keys_R.to(torch.int32)[:, None]
    high = (keys_R >> 32).to(torch.int32)[:, None]
    tokens_V = torch.arange(num_tokens, dtype=torch.int32, device=keys_R.device) * _STRIDE32
    x = tokens_V[None, :] + low
    x ^= (x >> 16) & 0xFFFF
    x *= _HASH1
    x ^= high
    x ^= (x >> 15) & 0x1FFFF
    x *= _HASH2
    x ^= (x >> 16) & 0xFFFF
    x &= 0x7FFFFFFF
    # Small u keep their relative precision, and small exponentials are the ones that win.
    u = x.float().add_(0.5).mul_(2.0**-31).clamp_(max=_U_MAX)
    return u.neg_().log1p_().neg_()


def _shift64(x: Tensor, bits: int) -> Tensor:
    """Logical shift right: torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
