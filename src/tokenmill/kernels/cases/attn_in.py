"""Cases of attn_in: from the residual to turned queries and stored keys and values, every step written out in fp64.

What is compared: q, then K and V as the kind reads them back, seen as in the cases of kv_write.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.kernels.bind import BindFacts, bind
from tokenmill.kernels.case import ROUNDING, Call, Case, draw, dtype_name, same
from tokenmill.kernels.cases.attention import Setup, row_meta
from tokenmill.kernels.cases.kv_write import VIEWS, read_back
from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import AttentionFacts, AttentionParts, Heads, Norm
from tokenmill.kv.contract import KVShape
from tokenmill.kv.layout import kind_names, load_kind
from tokenmill.weights.classes import Dense

D, T, EPS = 96, 9, 1e-5
HEADS, SHAPE = Heads(4, 2, 64), KVShape(2, 64, 16)
ROWS = 4 + 2 * 2


def turn(x_THK: Tensor, angle_TK: Tensor) -> Tensor:
    turned = torch.complex(*x_THK.chunk(2, -1)) * torch.polar(torch.ones_like(angle_TK), angle_TK)[:, None]
    return torch.cat((turned.real, turned.imag), -1)


def make(kv: str, dtype: torch.dtype, device: torch.device) -> Call:
    residual_TD, weight_D = draw(T, D, seed=30, dtype=dtype), 1 + draw(D, seed=31, dtype=dtype) * 0.3
    matrix_ND = draw(ROWS * 64, D, seed=32, dtype=dtype) * 0.2
    angle_TK = (5.0 + torch.arange(T)[:, None]).double() * 1000.0 ** (-torch.arange(32) / 32.0)
    pages = load_kind(kv).alloc(2, SHAPE, dtype, device)
    places_T = torch.randperm(32, generator=torch.Generator().manual_seed(33))[:T]
    rows = row_meta(Setup(((5 + T, T),)), torch.zeros(1, 1, dtype=torch.int32), device)
    rows.cos_TK, rows.sin_TK = angle_TK.cos().float().to(device), angle_TK.sin().float().to(device)
    rows.writes_T = (places_T.to(device),)
    ops = bind(device, BindFacts(dtype, kv), ()).primitives
    linear = ops.prepare_linear(Dense(matrix_ND.to(device)), None, dtype)
    norm = Norm(weight_D.to(device), EPS)
    parts = AttentionParts(norm, linear, linear, HEADS, AttentionFacts(0.125), same)
    normed = functional.rms_norm(residual_TD.double(), (D,), weight_D.double(), EPS)
    qkv = (normed @ matrix_ND.double().T).view(T, ROWS, 64)
    q, k, v = turn(qkv[:, :4], angle_TK), turn(qkv[:, 4:6], angle_TK), qkv[:, 6:]
    view, unit = VIEWS[kv]
    # Sums of about a hundred terms in fp32; in half types four roundings on the way weigh more.
    loose = ROUNDING[dtype] * float(qkv.abs().max()) * (8 if dtype == torch.float32 else 4)
    kept = torch.stack((k, v))
    units = (torch.full_like(q, loose), unit(view(kept)) + (1 if dtype == torch.float32 else 2) * loose)

    def result(got: Tensor) -> Tensor:
        return torch.cat((got.double().cpu().flatten(), read_back(pages, places_T, view).flatten()))

    truth = torch.cat((q.flatten(), view(kept).flatten()))
    arguments = (ops, Stream(residual_TD.to(device)), parts, rows, pages)
    return Call(arguments, truth, torch.cat([x.flatten() for x in units]), result)


def case(kv: str, dtype: torch.dtype) -> Case:
    cache = T * load_kind(kv).bytes_per_token(2, 64, dtype.itemsize)
    nbytes = (T * D + ROWS * 64 * D + T * ROWS * 64) * dtype.itemsize + cache
    return Case(f"{kv}-{dtype_name(dtype)}", partial(make, kv, dtype), 1.01, nbytes, 2 * T * D * ROWS * 64)


CASES = tuple(case(kv, dtype) for kv in kind_names() for dtype in (torch.float32, torch.float16, torch.bfloat16))
