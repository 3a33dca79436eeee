"""Cache kinds as kernels see them: planes in the order kernels take them, loads and stores of head vectors.

`int4` is `int4-plain` of rotated vectors (ROTATED below): kernels rotate k and v before they are stored, q before the
scores and the result behind. `fp8` has a scale and no offset.

Tiles of vectors are [K / 2, T] twice, the halves of a head: rope pairs channel i with i + K / 2, and so does an int4
byte.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kv.contract import KVPages

PLAIN, INT8, INT4, FP8 = 0, 1, 2, 3
CODES = {"auto": PLAIN, "int8": INT8, "int4": INT4, "int4-plain": INT4, "fp8": FP8}
ROTATED = ("int4",)


def planes(pages: KVPages) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k, k's params, v, v's params; a plain cache has no params and gives its values again."""
    held = pages.planes
    params = [held.get(f"{name}_params", held.get(f"{name}_scale", held[name])) for name in ("k", "v")]
    return held["k"], params[0], held["v"], params[1]


@triton.jit
def _signs(SIZE: tl.constexpr):
    """Sylvester's Hadamard matrix [SIZE, SIZE] of ones, fp32: the sign is the parity of the common bits."""
    bits = tl.arange(0, SIZE)[:, None] & tl.arange(0, SIZE)[None, :]
    bits ^= bits >> 8
    bits ^= bits >> 4
    bits ^= bits >> 2
    bits ^= bits >> 1
    return (1 - 2 * (bits & 1)).to(tl.float32)


@triton.jit
def _rotate_halves(first_HT, second_HT, HALF: tl.constexpr, dtype: tl.constexpr):
    """The rotation of vectors [K, T] given as halves of `dtype` numbers: products with ones are exact, sums fp32."""
    signs = _signs(HALF).to(dtype)
    first_HT = tl.dot(signs, first_HT.to(dtype), input_precision="ieee")
    second_HT = tl.dot(signs, second_HT.to(dtype), input_precision="ieee")
    scale = 1.0 / tl.sqrt(HALF * 2.0)
    return (first_HT + second_HT) * scale, (first_HT - second_HT) * scale


@triton.jit
def _load_heads(values_ptr, params_ptr, head_L, seen_L, KIND: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """[L, K] fp32 of the head vectors `head_L` (flat place * G + kv head); zeros where not seen or past K."""
    k = tl.arange(0, BLOCK_K)[None, :]
    inside = seen_L[:, None] & (k < K)
    head = head_L[:, None]
    if KIND == 0:
        vectors = tl.load(values_ptr + head * K + k, mask=inside, other=0.0).to(tl.float32)
    elif KIND == 3:
        scale = tl.load(params_ptr + head, mask=seen_L[:, None], other=0.0).to(tl.float32)
        codes = tl.load(values_ptr + head * K + k, mask=inside, other=0)
        vectors = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32) * scale
    else:
        scale = tl.load(params_ptr + head * 2, mask=seen_L[:, None], other=0.0).to(tl.float32)
        low = tl.load(params_ptr + head * 2 + 1, mask=seen_L[:, None], other=0.0).to(tl.float32)
        if KIND == 1:
            codes = tl.load(values_ptr + head * K + k, mask=inside, other=0)
        else:
            # Channel d lies in byte d % (K / 2): the low nibble for the first half of the head, the high one behind.
            packed = tl.load(values_ptr + head * (K // 2) + k % (K // 2), mask=inside, other=0)
            codes = tl.where(k < K // 2, packed & 15, packed >> 4)
        vectors = tl.where(k < K, codes.to(tl.float32) * scale + low, 0.0)
    return vectors


@triton.jit
def _code(x_HT, low_T, scale_T, levels: tl.constexpr):
    """Nearest of 0..levels; division rounds as the reference's, so that codes are its to the bit."""
    steps_HT = tl.floor(tl.div_rn(x_HT - low_T[None, :].to(tl.float32), scale_T[None, :].to(tl.float32)) + 0.5)
    return tl.minimum(tl.maximum(steps_HT, 0.0), levels * 1.0).to(tl.uint8)


@triton.jit
def _store_heads(values_ptr, params_ptr, head_T, wanted_T, first_HT, second_HT, h, HALF: tl.constexpr,
                 KIND: tl.constexpr):
    """Head vectors given as halves (fp32, rows `h`) to the places `head_T` (flat place * G + kv head) of a plane."""
    inside_HT = (h < HALF)[:, None] & wanted_T[None, :]
    at_HT = values_ptr + head_T[None, :] * (2 * HALF) + h[:, None]
    if KIND == 0:
        tl.store(at_HT, first_HT.to(values_ptr.dtype.element_ty), mask=inside_HT)
        tl.store(at_HT + HALF, second_HT.to(values_ptr.dtype.element_ty), mask=inside_HT)
    elif KIND == 3:
        loudest_T = tl.max(tl.maximum(tl.abs(first_HT), tl.abs(second_HT)), 0)
        # Maximum may pass over NaN: nothing times what is not finite is NaN, and stays in the scale.
        loudest_T += tl.sum(first_HT * 0 + second_HT * 0, 0)
        step_T = tl.div_rn(loudest_T, tl.full(loudest_T.shape, 448.0, tl.float32))
        scale_T = tl.where(step_T > 6.103515625e-05, step_T, tl.where(step_T == step_T, 6.103515625e-05, step_T))
        scale_T = scale_T.to(tl.float16)
        wide_HT = tl.zeros(first_HT.shape, tl.float32) + scale_T[None, :].to(tl.float32)
        first_HT = tl.minimum(tl.maximum(tl.div_rn(first_HT, wide_HT), -448.0), 448.0)
        second_HT = tl.minimum(tl.maximum(tl.div_rn(second_HT, wide_HT), -448.0), 448.0)
        tl.store(params_ptr + head_T, scale_T, mask=wanted_T)
        tl.store(at_HT, first_HT.to(tl.float8e4nv).to(tl.uint8, bitcast=True), mask=inside_HT)
        tl.store(at_HT + HALF, second_HT.to(tl.float8e4nv).to(tl.uint8, bitcast=True), mask=inside_HT)
    else:
        levels: tl.constexpr = 255 if KIND == 1 else 15
        inside_H1 = (h < HALF)[:, None]
        low_T = tl.min(tl.where(inside_H1, tl.minimum(first_HT, second_HT), float("inf")), 0)
        high_T = tl.max(tl.where(inside_H1, tl.maximum(first_HT, second_HT), float("-inf")), 0)
        low_T = (low_T + tl.sum(tl.where(inside_H1, first_HT * 0 + second_HT * 0, 0.0), 0)).to(tl.float16)
        step_T = tl.div_rn(high_T - low_T.to(tl.float32), tl.full(high_T.shape, levels * 1.0, tl.float32))
        scale_T = tl.maximum(step_T, 6.103515625e-05).to(tl.float16)
        first = _code(first_HT, low_T, scale_T, levels)
        second = _code(second_HT, low_T, scale_T, levels)
        tl.store(params_ptr + head_T * 2, scale_T, mask=wanted_T)
        tl.store(params_ptr + head_T * 2 + 1, low_T, mask=wanted_T)
        if KIND == 1:
            tl.store(at_HT, first, mask=inside_HT)
            tl.store(at_HT + HALF, second, mask=inside_HT)
        else:
            tl.store(values_ptr + head_T[None, :] * HALF + h[:, None], first | (second << 4), mask=inside_HT)
