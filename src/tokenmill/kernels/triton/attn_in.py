"""Block op attn_in: behind q, k and v, one kernel turns q and k and stores k and v as their cache kind has them.

One program a token and head vector. Codes are the reference's to the bit where division rounds alike (it is asked to):
k is rounded to the model's dtype before it is quantized, as there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.bind import BindFacts
from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import AttentionParts, Primitives
from tokenmill.kernels.reference.attn_in import attn_in as composition
from tokenmill.kernels.triton._kinds import CODES, planes
from tokenmill.kv.contract import KVPages

# `int4` rotates whole heads, which this kernel does not.
FUSED = ("auto", "int8", "int4-plain")


def refuses(facts: BindFacts) -> str | None:
    return None if facts.kv in FUSED else f"KV kind {facts.kv} is not fused"


@triton.jit
def _store(values_ptr, params_ptr, head, first_K, second_K, k, KIND: tl.constexpr, HALF: tl.constexpr):
    """A head vector in two halves to the place `head` (flat place * G + kv head) of a plane."""
    inside = k < HALF
    if KIND == 0:
        tl.store(values_ptr + head * 2 * HALF + k, first_K.to(values_ptr.dtype.element_ty), mask=inside)
        tl.store(values_ptr + head * 2 * HALF + HALF + k, second_K.to(values_ptr.dtype.element_ty), mask=inside)
    else:
        levels: tl.constexpr = 255 if KIND == 1 else 15
        low = tl.min(tl.where(inside, tl.minimum(first_K, second_K), float("inf")), 0)
        high = tl.max(tl.where(inside, tl.maximum(first_K, second_K), float("-inf")), 0)
        # Minimum and maximum may pass over NaN: nothing times what is not finite is NaN, and stays in the params.
        low = (low + tl.sum(tl.where(inside, first_K * 0 + second_K * 0, 0.0), 0)).to(tl.float16)
        step = tl.div_rn(high - low.to(tl.float32), levels * 1.0)
        scale = tl.maximum(step, 6.103515625e-05).to(tl.float16)
        first = tl.floor(tl.div_rn(first_K - low.to(tl.float32), scale.to(tl.float32)) + 0.5)
        second = tl.floor(tl.div_rn(second_K - low.to(tl.float32), scale.to(tl.float32)) + 0.5)
        first = tl.minimum(tl.maximum(first, 0.0), levels * 1.0).to(tl.uint8)
        second = tl.minimum(tl.maximum(second, 0.0), levels * 1.0).to(tl.uint8)
        tl.store(params_ptr + head * 2, scale)
        tl.store(params_ptr + head * 2 + 1, low)
        if KIND == 1:
            tl.store(values_ptr + head * 2 * HALF + k, first, mask=inside)
            tl.store(values_ptr + head * 2 * HALF + HALF + k, second, mask=inside)
        else:
            tl.store(values_ptr + head * HALF + k, first | (second << 4), mask=inside)


@triton.jit
def _turn_and_store(qkv_ptr, cos_ptr, sin_ptr, writes_ptr, q_ptr, k_ptr, k_params_ptr, v_ptr, v_params_ptr,
                    H: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr, KIND: tl.constexpr, BLOCK_K: tl.constexpr):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.arange(0, BLOCK_K)
    inside = k < HALF
    x_K = qkv_ptr + (token * (H + 2 * G) + head) * 2 * HALF + k
    first_K = tl.load(x_K, mask=inside, other=0.0).to(tl.float32)
    second_K = tl.load(x_K + HALF, mask=inside, other=0.0).to(tl.float32)
    if head < H + G:
        cos_K = tl.load(cos_ptr + token * HALF + k, mask=inside, other=0.0)
        sin_K = tl.load(sin_ptr + token * HALF + k, mask=inside, other=0.0)
        turned_K = first_K * cos_K - second_K * sin_K
        second_K = second_K * cos_K + first_K * sin_K
        dtype = q_ptr.dtype.element_ty
        first_K, second_K = turned_K.to(dtype).to(tl.float32), second_K.to(dtype).to(tl.float32)
    if head < H:
        out_K = q_ptr + (token * H + head) * 2 * HALF + k
        tl.store(out_K, first_K.to(q_ptr.dtype.element_ty), mask=inside)
        tl.store(out_K + HALF, second_K.to(q_ptr.dtype.element_ty), mask=inside)
    else:
        place = tl.load(writes_ptr + token)
        if place >= 0:
            if head < H + G:
                _store(k_ptr, k_params_ptr, place * G + head - H, first_K, second_K, k, KIND, HALF)
            else:
                _store(v_ptr, v_params_ptr, place * G + head - H - G, first_K, second_K, k, KIND, HALF)


def attn_in(ops: Primitives, stream: Stream, parts: AttentionParts, rows: RowMeta, pages: KVPages) -> Tensor:
    """As the reference, which also takes layers with head norms or LogN, and kinds not fused."""
    if parts.q_norm or parts.k_norm or parts.logn or pages.kind.name not in FUSED:
        return composition(ops, stream, parts, rows, pages)
    H, G, K = parts.heads.num_heads, parts.heads.num_kv_heads, parts.heads.head_dim
    qkv_TN = parts.qkv(ops.rms_norm(stream.residual_TD, parts.norm.weight_D, parts.norm.eps)).contiguous()
    T = len(qkv_TN)
    q_THK = torch.empty((T, H, K), dtype=qkv_TN.dtype, device=qkv_TN.device)
    if T:
        _turn_and_store[(T, H + 2 * G)](
            qkv_TN, rows.cos_TK.contiguous(), rows.sin_TK.contiguous(), rows.writes_T[parts.group], q_THK,
            *planes(pages), H, G, K // 2, CODES[pages.kind.name], triton.next_power_of_2(K // 2),
        )
    return q_THK
