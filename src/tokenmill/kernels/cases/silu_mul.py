"""Cases of silu_mul: x / (1 + exp(-x)) written out in fp64, far into both tails."""

from __future__ import annotations

from functools import partial

import torch

from tokenmill.kernels.case import DTYPES, ROUNDING, SMALLEST, Call, Case, draw, dtype_name

SHAPES = ((1, 256), (33, 768))


def make(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Call:
    T, F = shape
    gate, up = draw(T, F, seed=4, dtype=dtype) * 6, draw(T, F, seed=5, dtype=dtype)
    truth = gate.double() / (1 + torch.exp(-gate.double())) * up.double()
    return Call((torch.cat((gate, up), -1).to(device),), truth, truth.abs() * ROUNDING[dtype] + SMALLEST[dtype])


def case(shape: tuple[int, int], dtype: torch.dtype) -> Case:
    numel = torch.Size(shape).numel()
    tolerance = 12 if dtype == torch.float32 else 3
    name = f"{'x'.join(map(str, shape))}-{dtype_name(dtype)}"
    return Case(name, partial(make, shape, dtype), tolerance, 3 * numel * dtype.itemsize, 5 * numel)


CASES = tuple(case(shape, dtype) for shape in SHAPES for dtype in DTYPES)
