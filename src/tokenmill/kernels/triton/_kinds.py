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
def _rotate_rows(first_QH, second_QH, HALF: tl.constexpr):
    """The rotation of vectors [Q, K] given as halves, fp32. Where they are of a half type, products are exact."""
    signs = _signs(HALF).to(first_QH.dtype)
    first_QH = tl.dot(first_QH, signs, input_precision="ieee")
    second_QH = tl.dot(second_QH, signs, input_precision="ieee")
    scale = 1.0 / tl.sqrt(HALF * 2.0)
    return (first_QH + second_QH) * scale, (first_QH - second_QH) * scale


@triton.jit
def _rotate_sums(first_QH, second_QH, HALF: tl.constexpr, dtype: tl.constexpr):
    """`_rotate_rows` of fp32 numbers that end as `dtype`: as two numbers of a half type each, which hold them to twice
    its digits. Products of fp32 are unrolled multiplications, whose registers spill."""
    if dtype == tl.float32:
        first_QH, second_QH = _rotate_rows(first_QH, second_QH, HALF)
    else:
        high1_QH, high2_QH = first_QH.to(dtype), second_QH.to(dtype)
        low1_QH = (first_QH - high1_QH.to(tl.float32)).to(dtype)
        low2_QH = (second_QH - high2_QH.to(tl.float32)).to(dtype)
        first_QH, second_QH = _rotate_rows(high1_QH, high2_QH, HALF)
        low1_QH, low2_QH = _rotate_rows(low1_QH, low2_QH, HALF)
        first_QH, second_QH = first_QH + low1_QH, second_QH + low2_QH
    return first_QH, second_QH


@triton.constexpr_function
def _four_codes(high: str, kind: str, shift: int, mask: str) -> str:
    """Four bytes in a register -> four floats of 16 bits: each byte under an exponent's, less the middle code there."""
    middle = "80" if mask == "0xffffffff" else "08"
    base = f"0x{2 * (high[2:4] + middle)}"
    taken = f"shr.b32 t, $2, {shift}; and.b32 t, t, {mask};"
    pairs = f"prmt.b32 $0, t, {high}, 0x4140; prmt.b32 $1, t, {high}, 0x4342;"
    return f"{{ .reg .b32 t, b; mov.b32 b, {base}; {taken} {pairs} sub.rn.{kind} $0, $0, b; sub.rn.{kind} $1, $1, b; }}"


@triton.jit
def _as_floats(codes, dtype: tl.constexpr, SHIFT: tl.constexpr, FOUR: tl.constexpr, ASM: tl.constexpr):
    """uint8 codes less the middle one (128, or 8), as `dtype`; FOUR: the nibble at SHIFT.

    bf16 holds 128 + 7 bits, so that the short way is for nibbles only.
    """
    if ASM and dtype == tl.float16:
        if FOUR:
            values = tl.inline_asm_elementwise(
                _four_codes("0x64646464", "f16x2", SHIFT, "0x0f0f0f0f"), "=&r,=&r,r", [codes], dtype=tl.float16,
                is_pure=True, pack=4)
        else:
            values = tl.inline_asm_elementwise(
                _four_codes("0x64646464", "f16x2", 0, "0xffffffff"), "=&r,=&r,r", [codes], dtype=tl.float16,
                is_pure=True, pack=4)
    elif ASM and dtype == tl.bfloat16 and FOUR:
        values = tl.inline_asm_elementwise(
            _four_codes("0x43434343", "bf16x2", SHIFT, "0x0f0f0f0f"), "=&r,=&r,r", [codes], dtype=tl.bfloat16,
            is_pure=True, pack=4)
    elif FOUR:
        values = (((codes >> SHIFT) & 15).to(tl.float32) - 8.0).to(dtype)
    else:
        values = (codes.to(tl.float32) - 128.0).to(dtype)
    return values


@triton.jit
def _load_codes(values_ptr, params_ptr, head_L, seen_L, dtype: tl.constexpr, KIND: tl.constexpr, HALF: tl.constexpr,
                ASM: tl.constexpr, BLOCK_H: tl.constexpr):
    """The head vectors `head_L` (flat place * G + kv head) as halves [L, K / 2] of `dtype`, and scale and low [L] of
    each: number = half * scale + low. Codes are taken from their middle, so that less cancels. Zeros where not seen."""
    h = tl.arange(0, BLOCK_H)[None, :]
    inside_LH = seen_L[:, None] & (h < HALF)
    scale_L = tl.zeros(head_L.shape, tl.float32)
    low_L = scale_L
    if KIND == 1 or KIND == 2:
        scale_L = tl.load(params_ptr + head_L * 2, mask=seen_L, other=0.0).to(tl.float32)
        low_L = tl.load(params_ptr + head_L * 2 + 1, mask=seen_L, other=0.0).to(tl.float32)
        low_L += scale_L * (128.0 if KIND == 1 else 8.0)
    elif KIND == 3:
        scale_L = tl.load(params_ptr + head_L, mask=seen_L, other=0.0).to(tl.float32)
    if KIND == 2:
        # Channel d lies in byte d % (K / 2): the low nibble for the first half of the head, the high one behind.
        packed_LH = tl.load(values_ptr + head_L[:, None] * HALF + h, mask=inside_LH, other=0)
        first_LH = _as_floats(packed_LH, dtype, 0, True, ASM)
        second_LH = _as_floats(packed_LH, dtype, 4, True, ASM)
    else:
        at_LH = values_ptr + head_L[:, None] * (2 * HALF) + h
        first_LH = tl.load(at_LH, mask=inside_LH, other=0)
        second_LH = tl.load(at_LH + HALF, mask=inside_LH, other=0)
        if KIND == 1:
            first_LH = _as_floats(first_LH, dtype, 0, False, ASM)
            second_LH = _as_floats(second_LH, dtype, 0, False, ASM)
        elif KIND == 3:
            first_LH = first_LH.to(tl.float8e4nv, bitcast=True).to(dtype)
            second_LH = second_LH.to(tl.float8e4nv, bitcast=True).to(dtype)
    return first_LH, second_LH, scale_L, low_L


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
