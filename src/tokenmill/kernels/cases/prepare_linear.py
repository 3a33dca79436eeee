"""Cases of prepare_linear: every weight class times x, against x times its dequantized matrix in fp64.

Dequantized numbers are checked apart from here, against each class's formula (tests of weights).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from tokenmill.kernels.case import ROUNDING, Call, Case, draw, dtype_name
from tokenmill.weights import packing
from tokenmill.weights.classes import Dense, Fp8Block, Fp8Channel, Fp8Tensor, Int8Channel, IntGroup, Mxfp4
from tokenmill.weights.contract import Weight

Make = Callable[[int, int], Weight]
TOKENS = (1, 5, 33)


def int_group(n: int, m: int, *, bits: int = 4, group: int | None = 128, zeros: bool = True, order: bool = False,
              ) -> IntGroup:
    """Random codes; `order`: in-features in no order, as act-order leaves them."""
    draws = torch.Generator().manual_seed(11)
    Q = 1 if group is None else -(-m // group)
    codes = torch.randint(0, 1 << bits, (n, m), generator=draws, dtype=torch.uint8)
    scales = (0.01 + draw(n, Q, seed=12).abs() * 0.05).half()
    middles = torch.randint(0, 1 << bits, (n, Q), generator=draws).to(torch.int16) if zeros else None
    g_idx = (torch.randperm(m, generator=draws) // (group or m)).int()[None] if order else None
    return IntGroup(packing.pack(codes, bits), scales, middles, bits, group, m, g_idx)


def int8_channel(n: int, m: int) -> Int8Channel:
    codes = torch.randint(-127, 128, (n, m), generator=torch.Generator().manual_seed(13)).to(torch.int8)
    return Int8Channel(codes, 0.001 + draw(n, 1, seed=14).abs() * 0.01)


def dense(n: int, m: int, *, dtype: torch.dtype = torch.float32) -> Dense:
    return Dense(draw(n, m, seed=15, dtype=dtype) * 0.2)


def fp8_tensor(n: int, m: int) -> Fp8Tensor:
    return Fp8Tensor((draw(n, m, seed=16) * 20).to(torch.float8_e4m3fn), torch.full((1, 1), 0.011))


def fp8_channel(n: int, m: int) -> Fp8Channel:
    return Fp8Channel((draw(n, m, seed=16) * 20).to(torch.float8_e4m3fn), 0.01 + draw(n, 1, seed=17).abs() * 0.01)


def fp8_block(n: int, m: int) -> Fp8Block:
    codes = (draw(n, m, seed=16) * 20).to(torch.float8_e4m3fn)
    return Fp8Block(codes, 0.01 + draw(-(-n // 128), -(-m // 128), seed=18).abs() * 0.01, (128, 128))


def mxfp4(n: int, m: int) -> Mxfp4:
    draws = torch.Generator().manual_seed(23)
    codes = torch.randint(0, 256, (n, m // 2), generator=draws, dtype=torch.uint8)
    return Mxfp4(codes, torch.randint(118, 124, (n, m // 32), generator=draws, dtype=torch.uint8))


WEIGHTS: dict[str, Make] = {
    "dense": dense,
    "dense-bf16": partial(dense, dtype=torch.bfloat16),
    "int4-g128": int_group,
    "int4-g128-symmetric": partial(int_group, zeros=False),
    "int4-g64-act-order": partial(int_group, group=64, order=True),
    "int8-g128": partial(int_group, bits=8),
    "int3-row": partial(int_group, bits=3, group=None),
    "int8-channel": int8_channel,
    "fp8-tensor": fp8_tensor,
    "fp8-channel": fp8_channel,
    "fp8-block": fp8_block,
    "mxfp4": mxfp4,
}


def make(weight: Make, tokens: int, dtype: torch.dtype, device: torch.device) -> Call:
    n, m = 192, 256
    held = weight(n, m)
    x_TM, bias_N = draw(tokens, m, seed=19, dtype=dtype), draw(n, seed=20)
    matrix = held.dequantize(torch.float32)
    if isinstance(held, Dense):
        # A plain weight runs in the model's dtype.
        matrix, bias_N = matrix.to(dtype), bias_N.to(dtype)
    truth = x_TM.double() @ matrix.double().T + bias_N.double()
    # Sums in fp32 of terms this large, and one rounding of the result.
    terms = x_TM.double().abs() @ matrix.double().abs().T + bias_N.double().abs()
    unit = ROUNDING[dtype] * truth.abs() + terms * 2.0**-24 * 8
    device_x = x_TM.to(device)
    return Call((held.to(device), bias_N.to(device), dtype), truth, unit, lambda prepared: prepared(device_x))


def case(name: str, weight: Make, tokens: int, dtype: torch.dtype) -> Case:
    n, m = 192, 256
    nbytes = weight(n, m).nbytes + tokens * (n + m) * dtype.itemsize
    # Half types may sum in their own way (split accumulators); a second rounding is allowed.
    tolerance = 1.5 if dtype == torch.float32 else 2.5
    return Case(f"{name}-T{tokens}-{dtype_name(dtype)}", partial(make, weight, tokens, dtype), tolerance, nbytes,
                2 * tokens * n * m)


CASES = (
    *(case(name, weight, tokens, torch.float32) for name, weight in WEIGHTS.items() for tokens in TOKENS),
    *(case(name, weight, 5, dtype) for name, weight in WEIGHTS.items() for dtype in (torch.float16, torch.bfloat16)),
)
