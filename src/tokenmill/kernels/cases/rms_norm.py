"""Cases of rms_norm: rows and heads of rows, against torch's own in fp64. Two roundings in x's dtype."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional

from tokenmill.kernels.case import DTYPES, ROUNDING, SMALLEST, Call, Case, draw, dtype_name

EPS = 1e-5
SHAPES = ((1, 256), (7, 128), (33, 6, 64), (3, 4096))


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Call:
    x = draw(*shape, seed=1, dtype=dtype) * 3
    # A row of tiny numbers, where eps decides.
    x[0] *= 1e-3
    weight_D = 1 + draw(shape[-1], seed=2, dtype=dtype) * 0.3
    truth = functional.rms_norm(x.double(), shape[-1:], weight_D.double(), EPS)
    return Call((x.to(device), weight_D.to(device), EPS), truth, truth.abs() * ROUNDING[dtype] + SMALLEST[dtype])


def case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    numel = torch.Size(shape).numel()
    name = f"{'x'.join(map(str, shape))}-{dtype_name(dtype)}"
    tolerance = 12 if dtype == torch.float32 else 3
    return Case(name, partial(make, shape, dtype), tolerance, 2 * numel * dtype.itemsize, 4 * numel)


CASES = tuple(case(shape, dtype) for shape in SHAPES for dtype in DTYPES)
