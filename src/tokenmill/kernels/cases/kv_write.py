"""Cases of kv_write: what a kind reads back is what was written, within the rounding of its own grid.

Some tokens go nowhere (-1), places nobody wrote must still hold zeros, one head vector is constant, and one has an
outlier channel. G kv heads of K channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenmill.kernels.case import Call, Case, draw, dtype_name
from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import kind_names, load_kind

T, BLOCKS, SHAPE = 37, 6, KVShape(2, 64, 16)
HALF = 2.0**-11


def hadamard(K: int) -> Tensor:
    """By the parity of i & j, in fp64: another way than the recursion in `kv/rotate.py`."""
    places = torch.arange(K)
    both = places[:, None] & places
    bits = torch.stack([(both >> bit) & 1 for bit in range(K.bit_length())])
    signs: Tensor = 1.0 - 2.0 * (bits.sum(0) % 2).double()
    return signs / math.sqrt(K)


def plain(x: Tensor) -> Tensor:
    return x


def rotated(x: Tensor) -> Tensor:
    return x @ hadamard(x.shape[-1]).to(x.device)


def grid_unit(levels: int, x: Tensor) -> Tensor:
    """Half a step, and what rounding scale and minimum to fp16 moves the ends of the range."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = ((high - low) / levels).clamp(min=2.0**-14)
    return (step / 2 + HALF * (levels * step + low.abs())).expand_as(x) + 1e-6


def fp8_unit(x: Tensor) -> Tensor:
    """Three bits behind the leading one, or the smallest step of e4m3."""
    scale = (x.abs().amax(-1, keepdim=True) / 448).clamp(min=2.0**-14)
    return x.abs() * (2.0**-4 + HALF) + scale * 2.0**-10


def exact_unit(x: Tensor) -> Tensor:
    return torch.full_like(x, 1e-30)


# How a kind's error is seen: after which transform, and in which unit.
VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "auto": (plain, exact_unit),
    "int8": (plain, partial(grid_unit, 255)),
    "int4-plain": (plain, partial(grid_unit, 15)),
    "int4": (rotated, partial(grid_unit, 15)),
    "fp8": (plain, fp8_unit),
}


def vectors(seed: int, dtype: torch.dtype) -> Tensor:
    x_TGK = draw(T, SHAPE.num_heads, SHAPE.head_dim, seed=seed, dtype=dtype)
    x_TGK[1, 0] = 0.75
    x_TGK[2, 1, 5] = 40.0
    return x_TGK


def make(kv: str, dtype: torch.dtype, device: torch.device) -> Call:
    kind = load_kind(kv)
    pages = kind.alloc(BLOCKS, SHAPE, dtype, device)
    k_TGK, v_TGK = vectors(6, dtype), vectors(7, dtype)
    order = torch.randperm(BLOCKS * SHAPE.block_tokens, generator=torch.Generator().manual_seed(8))
    writes_T, unwritten = order[:T].clone(), order[T:]
    dropped = torch.tensor([0, 9])
    unwritten = torch.cat((unwritten, writes_T[dropped]))
    places = torch.cat((writes_T, unwritten))
    kept = torch.ones(len(places), dtype=torch.bool)
    kept[dropped] = False
    writes_T[dropped] = -1
    view, unit = VIEWS[kv]
    truth = torch.zeros(2, len(places), SHAPE.num_heads, SHAPE.head_dim, dtype=torch.float64)
    truth[:, :T] = torch.stack((k_TGK, v_TGK)).double()
    truth = view(truth) * kept[:, None, None]

    def result(_: Any) -> Tensor:
        return read_back(pages, places, view)

    arguments = (pages, k_TGK.to(device), v_TGK.to(device), writes_T.to(device))
    return Call(arguments, truth, unit(truth), result)


def read_back(pages: KVPages, places: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
    index = places.to(next(iter(pages.planes.values())).device)[None]
    return torch.stack([view(x[0].double().cpu()) for x in pages.kind.gather(pages, index)])


def case(kv: str, dtype: torch.dtype) -> Case:
    written = T * load_kind(kv).bytes_per_token(SHAPE.num_heads, SHAPE.head_dim, dtype.itemsize)
    read = 2 * T * SHAPE.num_heads * SHAPE.head_dim * dtype.itemsize
    return Case(f"{kv}-{dtype_name(dtype)}", partial(make, kv, dtype), 1.001, written + read, 0)


CASES = tuple(case(kv, dtype) for kv in kind_names() for dtype in (torch.float32, torch.float16, torch.bfloat16))
