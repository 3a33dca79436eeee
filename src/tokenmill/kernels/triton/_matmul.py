"""Device functions of weights times inputs: tiles of W x^T summed in fp32, split along M, joined by whoever ends last.

Tiles are [N, T]: the weight's rows are the matrix units' long operand, tokens the short one, so that one token wastes
no more than the unit's narrow side. Kinds of weight:

  DENSE    [N, M] in the model's dtype.
  BYTES    [N, M] codes of 8 bits (unsigned, signed or e4m3 bits), a scale (and zero) a row and group.
  NIBBLES  codes of 4 bits in the order of `_pack.py`, a scale and zero a row and group.

Codes less their zero are exact in fp16 and bf16, so each group is summed as it is and scaled in fp32. FOLD scales
weights before the product instead: one rounding more, one sum less.

Splits (Z programs a tile) put their sums into a scratch; the last to arrive adds them in order, so that a result does
not depend on who came when, and puts the tile's counter back to zero for the next call.
"""

from __future__ import annotations

import triton
import triton.language as tl

DENSE, BYTES, NIBBLES = 0, 1, 2
UNSIGNED, SIGNED, E4M3 = 0, 1, 2
# Codes a row in a tile of NIBBLES: 32 words of four codes. And what a chunk of BYTES or DENSE has.
CHUNK = 128


@triton.jit
def _prefetch(base_N, first, last, STRIDE: tl.constexpr):
    """Asks for the bytes at base_N + first..last * STRIDE to be brought to the second-level cache."""
    for unit in range(first, last, 8):
        unit_U = tl.minimum(unit + tl.arange(0, 8), last - 1)
        at_NU = base_N[:, None] + unit_U[None, :].to(tl.int64) * STRIDE
        tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at_NU], dtype=tl.int32,
                                  is_pure=False, pack=1)


@triton.jit
def _start_early(w_ptr, row_N, first, last, M, stride, KIND: tl.constexpr, EARLY: tl.constexpr):
    """Launched while the kernel before still runs: lets the next one start too, asks for EARLY chunks of weights, which
    no kernel changes, and waits for what the one before leaves."""
    tl.extra.cuda.gdc_launch_dependents()
    last = tl.minimum(last, first + EARLY)
    row_N = tl.minimum(row_N, stride - 1)
    if KIND == 2:
        base_N = w_ptr + (row_N // 16).to(tl.int64) * (tl.cdiv(M, 128) * 512) + (row_N % 16) * 32
        _prefetch(base_N.to(tl.int64), first, last, 1024)
    elif KIND == 1:
        _prefetch((w_ptr + row_N.to(tl.int64) * M).to(tl.int64), first, last, 128)
    else:
        _prefetch((w_ptr + row_N.to(tl.int64) * M).to(tl.int64), first * 2, last * 2, 128)
    tl.extra.cuda.gdc_wait()


@triton.constexpr_function
def _two_codes(place: int, bias: int) -> str:
    """Two words in a register -> two codes less their zeros: a shift, a masked or, a subtraction."""
    shift = f"shr.b32 t, $1, {4 * place};" if place else "mov.b32 t, $1;"
    magic, kind = ("0x64006400", "f16x2") if bias == 1024 else ("0x43004300", "bf16x2")
    return f"{{ .reg .b32 t; {shift} lop3.b32 t, t, 0x000f000f, {magic}, 0xea; sub.rn.{kind} $0, t, $2; }}"


@triton.jit
def _nibbles(words_NI, zero_N, PLACE: tl.constexpr, BIAS: tl.constexpr, ASM: tl.constexpr):
    """Codes at nibble PLACE less their zeros, exact in zero_N's dtype. zero_N holds BIAS + zero.

    In the floats BIAS stands for (1024 in fp16, 128 in bf16) a code is the low bits of the mantissa.
    """
    if ASM:
        # Types must stand here as they are: a constexpr of one is not taken.
        if BIAS == 1024:
            codes_NI = tl.inline_asm_elementwise(
                _two_codes(PLACE, BIAS), "=r,r,r", [words_NI, zero_N[:, None]], dtype=tl.float16, is_pure=True, pack=2)
        else:
            codes_NI = tl.inline_asm_elementwise(
                _two_codes(PLACE, BIAS), "=r,r,r", [words_NI, zero_N[:, None]], dtype=tl.bfloat16, is_pure=True,
                pack=2)
    else:
        codes_NI = ((words_NI >> (4 * PLACE)) & 15).to(tl.float32) + BIAS - zero_N[:, None].to(tl.float32)
        codes_NI = codes_NI.to(zero_N.dtype)
    return codes_NI


@triton.jit
def _inputs(x_ptr, norm_ptr, rstd_T, token_T, k_K, T, M, NORM: tl.constexpr, EVEN: tl.constexpr):
    """x^T [K, T]; normed on the way (rounded before and behind the norm's weight, as rms_norm does)."""
    inside_T = token_T < T
    inside_K = k_K < M
    inside = inside_T[None, :] if EVEN else inside_K[:, None] & inside_T[None, :]
    x_KT = tl.load(x_ptr + token_T[None, :] * M + k_K[:, None], mask=inside, other=0.0)
    if NORM:
        norm_K = tl.load(norm_ptr + k_K) if EVEN else tl.load(norm_ptr + k_K, mask=inside_K, other=0.0)
        normed_KT = (x_KT.to(tl.float32) * rstd_T[None, :]).to(x_KT.dtype)
        x_KT = (normed_KT.to(tl.float32) * norm_K[:, None].to(tl.float32)).to(x_KT.dtype)
    return x_KT


@triton.jit
def _rstd(sums_ptr, token_T, T, M, eps, NORM: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr):
    """1 / rms of each token from the sums of squares that PARTS programs left."""
    if NORM:
        p = tl.arange(0, BLOCK_P)
        inside = (p < PARTS)[:, None] & (token_T < T)[None, :]
        total_T = tl.sum(tl.load(sums_ptr + p[:, None] * T + token_T[None, :], mask=inside, other=0.0), 0)
        rstd_T = tl.rsqrt(total_T / M + eps)
    else:
        rstd_T = tl.zeros(token_T.shape, tl.float32)
    return rstd_T


@triton.jit
def _product_nibbles(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, rstd_T, row_N, token_T, first, last, T, M, stride,
                     NORM: tl.constexpr, EVEN: tl.constexpr, ZEROS: tl.constexpr, PLANES: tl.constexpr,
                     BIAS: tl.constexpr, FOLD: tl.constexpr, ASM: tl.constexpr, BLOCK_N: tl.constexpr,
                     BLOCK_T: tl.constexpr):
    """Chunks first..last of a tile. PLANES: a group is so many times 32 codes; `stride`: rows of scales and zeros."""
    dtype = x_ptr.dtype.element_ty
    acc_NT = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    i = tl.arange(0, 32)
    chunks = tl.cdiv(M, 128)
    row_N = tl.minimum(row_N, stride - 1)
    words = w_ptr + (row_N // 16).to(tl.int64) * (chunks * 512) + (row_N % 16) * 32
    zero_N = tl.full([BLOCK_N], BIAS + 8, tl.float32).to(dtype)
    # One group ahead, so that nobody waits for scales: only what feeds a product is fetched early by the compiler.
    group = tl.minimum(first, last - 1) * 4 // PLANES
    ahead_N = tl.load(scales_ptr + group * stride + row_N)
    ahead_zero_N = zero_N
    if ZEROS:
        ahead_zero_N = tl.load(zeros_ptr + group * stride + row_N)
    for chunk in range(first, last):
        words_NI = tl.load(words[:, None] + chunk * 512 + i[None, :])
        part_NT = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
        for p in tl.static_range(4):
            if (p == 0 and PLANES >= 4) or (p % PLANES == 0 and PLANES < 4):
                scale_N, zero_N = ahead_N, ahead_zero_N
                behind = tl.minimum(chunk * 4 + p + (PLANES if PLANES < 4 else 4), last * 4 - 1) // PLANES
                ahead_N = tl.load(scales_ptr + behind * stride + row_N)
                if ZEROS:
                    ahead_zero_N = tl.load(zeros_ptr + behind * stride + row_N)
            codes_NI = _nibbles(words_NI, zero_N, p, BIAS, ASM)
            x_IT = _inputs(x_ptr, norm_ptr, rstd_T, token_T, chunk * 128 + p * 32 + i, T, M, NORM, EVEN)
            if FOLD:
                acc_NT = tl.dot(codes_NI * scale_N[:, None].to(dtype), x_IT, acc_NT, input_precision="ieee")
            else:
                part_NT = tl.dot(codes_NI, x_IT, part_NT, input_precision="ieee")
                if PLANES < 4 and (p + 1) % PLANES == 0:
                    acc_NT += part_NT * scale_N[:, None].to(tl.float32)
                    part_NT = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
        if PLANES >= 4 and not FOLD:
            acc_NT += part_NT * scale_N[:, None].to(tl.float32)
    return acc_NT


@triton.jit
def _bytes(codes_NK, zero_N, SIGN: tl.constexpr, ZEROS: tl.constexpr, dtype: tl.constexpr):
    """Codes of 8 bits as numbers, less their zeros; all exact in half types."""
    if SIGN == 2:
        values_NK = codes_NK.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    elif SIGN == 1:
        values_NK = codes_NK.to(tl.int8, bitcast=True).to(tl.float32)
    else:
        values_NK = codes_NK.to(tl.float32)
    if ZEROS:
        values_NK -= zero_N[:, None].to(tl.float32)
    return values_NK.to(dtype)


@triton.jit
def _product_rows(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, rstd_T, row_N, token_T, first, last, T, M, stride,
                  NORM: tl.constexpr, EVEN: tl.constexpr, BYTES: tl.constexpr, SIGN: tl.constexpr,
                  ZEROS: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
                  BLOCK_K: tl.constexpr):
    """Chunks first..last (of BLOCK_K) of a tile of row-major weights. GROUP: in-features a scale, a multiple of
    BLOCK_K. Rows past the weight's (`stride`) read its last one."""
    dtype = x_ptr.dtype.element_ty
    acc_NT = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    row_N = tl.minimum(row_N, stride - 1)
    start_N = w_ptr + row_N.to(tl.int64) * M
    ahead_N = row_N
    zero_N = row_N
    if BYTES:
        ahead_N = tl.load(scales_ptr + (tl.minimum(first, last - 1) * BLOCK_K // GROUP) * stride + row_N)
    for chunk in range(first, last):
        k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
        if EVEN:
            w_NK = tl.load(start_N[:, None] + k[None, :])
        else:
            w_NK = tl.load(start_N[:, None] + k[None, :], mask=(k < M)[None, :], other=0)
        x_KT = _inputs(x_ptr, norm_ptr, rstd_T, token_T, k, T, M, NORM, EVEN)
        if BYTES:
            scale_N = ahead_N
            ahead_N = tl.load(scales_ptr + (tl.minimum(chunk + 1, last - 1) * BLOCK_K // GROUP) * stride + row_N)
            if ZEROS:
                zero_N = tl.load(zeros_ptr + (chunk * BLOCK_K // GROUP) * stride + row_N)
            values_NK = _bytes(w_NK, zero_N, SIGN, ZEROS, dtype)
            acc_NT += tl.dot(values_NK, x_KT, input_precision="ieee") * scale_N[:, None].to(tl.float32)
        else:
            acc_NT = tl.dot(w_NK, x_KT, acc_NT, input_precision="ieee")
    return acc_NT


@triton.jit
def _product(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, sums_ptr, row_N, token_T, T, M, stride, eps,
             KIND: tl.constexpr, SIGN: tl.constexpr, ZEROS: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr,
             NORM: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, EVEN: tl.constexpr, FOLD: tl.constexpr,
             ASM: tl.constexpr, EARLY: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """This split's share of a tile, [N, T] fp32. The split is program axis 1."""
    chunks = tl.cdiv(M, BLOCK_K)
    share = tl.cdiv(chunks, SPLITS)
    # A split behind the end has nothing to add: its range is empty.
    first = tl.minimum(tl.program_id(1) * share, chunks)
    last = tl.minimum(first + share, chunks)
    if EARLY > 0:
        _start_early(w_ptr, row_N, first, last, M, stride, KIND, EARLY)
    rstd_T = _rstd(sums_ptr, token_T, T, M, eps, NORM, PARTS, BLOCK_P)
    if KIND == 2:
        acc_NT = _product_nibbles(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, rstd_T, row_N, token_T, first, last,
                                  T, M, stride, NORM, EVEN, ZEROS, GROUP // 32, BIAS, FOLD, ASM, BLOCK_N, BLOCK_T)
    else:
        acc_NT = _product_rows(x_ptr, w_ptr, scales_ptr, zeros_ptr, norm_ptr, rstd_T, row_N, token_T, first, last, T,
                               M, stride, NORM, EVEN, KIND == 1, SIGN, ZEROS, GROUP, BLOCK_N, BLOCK_T, BLOCK_K)
    return acc_NT


@triton.jit
def _meet(acc_NT, scratch_ptr, counters_ptr, tile, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr):
    """The sum over splits, and whether this program has it (the last to arrive)."""
    if SPLITS == 1:
        mine = tile >= 0
    else:
        at = tl.arange(0, BLOCK_N)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
        base = scratch_ptr + tile.to(tl.int64) * (SPLITS * BLOCK_N * BLOCK_T) + at
        tl.store(base + tl.program_id(1) * (BLOCK_N * BLOCK_T), acc_NT)
        # Every thread's part is written before one thread says so, to the whole device (acquire and release).
        tl.debug_barrier()
        mine = tl.atomic_add(counters_ptr + tile, 1) == SPLITS - 1
        if mine:
            acc_NT = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
            for split in range(SPLITS):
                acc_NT += tl.load(base + split * (BLOCK_N * BLOCK_T), cache_modifier=".cg")
            tl.store(counters_ptr + tile, 0)
    return acc_NT, mine


@triton.jit
def _halves(x_NT, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr):
    """The upper and the lower half of a tile's rows."""
    return tl.split(tl.permute(tl.reshape(x_NT, [2, BLOCK_N // 2, BLOCK_T]), (1, 2, 0)))
