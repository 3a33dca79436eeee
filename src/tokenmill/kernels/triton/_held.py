"""Weights as the Triton kernels hold them, and how a product of one shape is cut into programs.

`hold(weight, bias, dtype)` gives a `Held`, or the reason why not. Of IntGroup: 4 bits in groups of a multiple of 32
(act-order too), 8 bits in groups of a multiple of 128; Int8Channel, Fp8Tensor, Fp8Channel; Fp8Block of 128 columns;
Dense. Weights are 2-dimensional here: experts are another op's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from tokenmill import env
from tokenmill.kernels.triton import _matmul
from tokenmill.kernels.triton._pack import BIAS, ROWS, by_group, in_order, pack_nibbles
from tokenmill.weights.classes import Dense, Fp8Block, Fp8Channel, Fp8Tensor, Int8Channel, IntGroup
from tokenmill.weights.contract import Weight

CHUNK = _matmul.CHUNK
HALF_TYPES = (torch.float16, torch.bfloat16)


@dataclass(slots=True)
class Held:
    """kind, sign: of `_matmul`. w: as the kind has it. scales, zeros: [groups, stride] (w again where there are none).

    group: in-features a scale. order_M: the in-feature of each column, where columns were moved. counters: one a tile,
    always 0 between calls.
    """

    kind: int
    sign: int
    w: Tensor
    scales_QN: Tensor
    zeros_QN: Tensor
    group: int
    num_out: int
    num_in: int
    stride: int
    has_zeros: bool
    dtype: torch.dtype
    counters: Tensor
    order_M: Tensor | None = None
    bias_N: Tensor | None = None

    @property
    def even(self) -> bool:
        return self.num_in % CHUNK == 0

    def tensors(self) -> list[Tensor]:
        found = (self.w, self.scales_QN, self.zeros_QN, self.order_M, self.bias_N)
        return [tensor for tensor in found if tensor is not None]


@dataclass(frozen=True, slots=True)
class Tiling:
    """BLOCK_N rows by BLOCK_T tokens a program, `splits` programs along M. `fold`, `asm`: as in `_matmul`.

    early: chunks of weights asked for while the kernel before still runs (0: started when that has ended).
    """

    block_n: int
    block_t: int
    splits: int
    warps: int = 4
    stages: int = 4
    fold: bool = False
    asm: bool = True
    early: int = 0


def hold(weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Held | str:
    """The weight in kernel order, or why not."""
    makers: dict[type, Callable[..., Held | str]] = {
        Dense: _dense, IntGroup: _int_group, Int8Channel: _channel, Fp8Tensor: _channel, Fp8Channel: _channel,
        Fp8Block: _fp8_block,
    }  # fmt: skip
    maker = makers.get(type(weight))
    if maker is None:
        return f"{type(weight).__name__} weights"
    if weight_axes(weight) != 2:
        return "weights with an expert axis"
    held = maker(weight, dtype)
    if isinstance(held, Held) and bias is not None:
        held.bias_N = bias.to(held.w.device, dtype if held.kind == _matmul.DENSE else torch.float32).contiguous()
    return held


def weight_axes(weight: Weight) -> int:
    codes = weight.value if isinstance(weight, Dense) else weight.codes  # type: ignore[attr-defined]
    return int(codes.dim())


def _held(kind: int, w: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Held:
    """Without scales; one counter a tile of the narrowest rows and most tokens there can be."""
    counters = torch.zeros(triton.cdiv(shape[0], ROWS) * 4, dtype=torch.int32, device=w.device)
    return Held(kind, _matmul.UNSIGNED, w, w, w, CHUNK, *shape, shape[0], False, dtype, counters)


def _dense(weight: Dense, dtype: torch.dtype) -> Held:
    return _held(_matmul.DENSE, weight.dequantize(dtype).contiguous(), weight.shape, dtype)


def _int_group(weight: IntGroup, dtype: torch.dtype) -> Held | str:
    unit = {4: 32, 8: CHUNK}.get(weight.bits)
    if unit is None or (weight.group or unit) % unit:
        return f"{weight.bits}-bit weights in groups of {weight.group}"
    ordered = in_order(weight)
    if ordered is None:
        return "a part of an act-order weight, whose groups differ in size"
    codes_NM, order_M = ordered
    m = codes_NM.shape[1]
    group = weight.group or triton.cdiv(m, CHUNK) * CHUNK
    num_groups = max(weight.num_groups, triton.cdiv(m, CHUNK) * CHUNK // group)
    nibbles = weight.bits == 4
    held = _held(_matmul.NIBBLES if nibbles else _matmul.BYTES, pack_nibbles(codes_NM) if nibbles else codes_NM,
                 weight.shape, dtype)
    scales = weight.scales if weight.scales.dtype in HALF_TYPES else weight.scales.float()
    held.scales_QN = by_group(scales, num_groups, scales.dtype)
    held.zeros_QN, held.has_zeros = held.scales_QN, not nibbles or weight.zeros is not None
    if held.has_zeros:
        offset, kept = (BIAS[dtype], dtype) if nibbles else (0, torch.int16)
        held.zeros_QN = by_group(weight.filled_zeros().float() + offset, num_groups, kept)
    return replace(held, group=group, stride=held.scales_QN.shape[1], order_M=order_M)


def _channel(weight: Int8Channel | Fp8Tensor | Fp8Channel, dtype: torch.dtype) -> Held | str:
    """One scale a row: the group is the whole row."""
    if weight.codes.dtype not in (torch.int8, torch.float8_e4m3fn):
        return f"codes of {weight.codes.dtype}"
    scales_N1 = weight.scales.float().expand(weight.shape[0], 1)
    return _codes8(weight.codes, scales_N1, triton.cdiv(weight.shape[1], CHUNK) * CHUNK, dtype)


def _fp8_block(weight: Fp8Block, dtype: torch.dtype) -> Held | str:
    rows, columns = weight.block
    if columns % CHUNK or weight.codes.dtype != torch.float8_e4m3fn:
        return f"{weight.codes.dtype} in blocks of {rows} x {columns}"
    scales_NQ = weight.scales.float().repeat_interleave(rows, 0)[: weight.shape[0]]
    return _codes8(weight.codes, scales_NQ, columns, dtype)


def _codes8(codes_NM: Tensor, scales_NQ: Tensor, group: int, dtype: torch.dtype) -> Held:
    n, m = codes_NM.shape
    held = _held(_matmul.BYTES, codes_NM.contiguous().view(torch.uint8), (n, m), dtype)
    sign = _matmul.SIGNED if codes_NM.dtype == torch.int8 else _matmul.E4M3
    return replace(held, sign=sign, scales_QN=scales_NQ.T.contiguous(), zeros_QN=held.w, group=group)


# ---------------------------------------------------------------- how a product is cut

# Chunks asked for early where kernels start before their predecessor ends: 32 KiB of W4 a program.
EARLY_CHUNKS = 8
# A benchmark may decide for the environment, to compare within one process.
asked_early: bool | None = None

# Programs wanted: two a multiprocessor of an H200 (132), so that one loads while the other ends.
WANTED = 264
MOST_TOKENS = 128
MOST_SPLITS = 16
# The narrow side of the matrix units.
LEAST_TOKENS = 8
# Chunks a split must have at least: below, its start costs more than it saves.
LEAST_CHUNKS = 4


def early() -> int:
    """Not our choice until it is measured: what the environment says."""
    asked = env.early_launch() if asked_early is None else asked_early
    return EARLY_CHUNKS if asked else 0


def tiling(held: Held, tokens: int, block_n: int = 64) -> Tiling:
    """Not measured yet: enough programs to fill the device, in the fewest parts."""
    block_t = min(MOST_TOKENS, max(LEAST_TOKENS, triton.next_power_of_2(tokens)))
    if held.dtype == torch.float32:
        # Multiplications one by one, which take long to compile in large tiles.
        block_t = min(block_t, 16)
    programs = triton.cdiv(held.num_out, block_n) * triton.cdiv(tokens, block_t)
    chunks, splits = triton.cdiv(held.num_in, CHUNK), 1
    while splits < MOST_SPLITS and programs * splits < WANTED and chunks // (2 * splits) >= LEAST_CHUNKS:
        splits *= 2
    warps = 8 if block_t >= 64 else 4
    return Tiling(block_n, block_t, splits, warps, stages=3 if block_t >= 64 else 5, early=early())
