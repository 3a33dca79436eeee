"""Cases of rope: each pair (i, i + K / 2) is a complex number, turned by exp(i angle) in fp64."""

from __future__ import annotations

from functools import partial

import torch

from tokenmill.kernels.case import DTYPES, ROUNDING, SMALLEST, Call, Case, draw, dtype_name

SHAPES = ((1, 4, 64), (9, 6, 64), (33, 3, 128))


def make(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Call:
    T, _, K = shape
    x = draw(*shape, seed=3, dtype=dtype)
    angle_TK = (torch.arange(T)[:, None] * 37.0 + 1) * 10000.0 ** (-torch.arange(K // 2) * 2.0 / K)
    angle_TK = angle_TK.double()
    turned = torch.complex(*x.double().chunk(2, -1)) * torch.polar(torch.ones_like(angle_TK), angle_TK)[:, None]
    truth = torch.cat((turned.real, turned.imag), -1)
    # An error is measured against the pair it turns.
    unit = turned.abs().repeat(1, 1, 2) * ROUNDING[dtype] + SMALLEST[dtype]
    return Call((x.to(device), angle_TK.cos().float().to(device), angle_TK.sin().float().to(device)), truth, unit)


def case(shape: tuple[int, int, int], dtype: torch.dtype) -> Case:
    numel = torch.Size(shape).numel()
    name = f"{'x'.join(map(str, shape))}-{dtype_name(dtype)}"
    nbytes = 2 * numel * dtype.itemsize + shape[0] * shape[2] * 4
    return Case(name, partial(make, shape, dtype), 4 if dtype == torch.float32 else 1.1, nbytes, 3 * numel)


CASES = tuple(case(shape, dtype) for shape in SHAPES for dtype in DTYPES)
