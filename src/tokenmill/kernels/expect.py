"""Shapes and dtypes stated in prose, asserted at a room's edge."""

from __future__ import annotations

import torch
from torch import Tensor


def expect(x: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype | None = None, name: str = "tensor") -> Tensor:
    """x itself where its sizes (None: any) and dtype fit; else a ValueError that shows both."""
    fits = x.dim() == len(shape) and all(want is None or want == got for want, got in zip(shape, x.shape, strict=False))
    if not fits or (dtype is not None and x.dtype != dtype):
        raise ValueError(f"{name} is {tuple(x.shape)} {x.dtype}; expected {shape} {dtype or 'of any dtype'}")
    return x
