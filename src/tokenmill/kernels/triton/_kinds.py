"""Cache kinds as kernels see them: planes in the order kernels take them, and one head vector block in fp32.

`int4` is `int4-plain` of rotated vectors: its callers rotate q (or k and v) before, and the result behind.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kv.contract import KVPages

PLAIN, INT8, INT4 = 0, 1, 2
CODES = {"auto": PLAIN, "int8": INT8, "int4": INT4, "int4-plain": INT4}


def planes(pages: KVPages) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k, k's params, v, v's params; a plain cache has no params and gives its values again."""
    held = pages.planes
    return held["k"], held.get("k_params", held["k"]), held["v"], held.get("v_params", held["v"])


@triton.jit
def load_heads(values_ptr, params_ptr, head_L, seen_L, KIND: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """[L, K] fp32 of the head vectors `head_L` (flat place * G + kv head); zeros where not seen or past K."""
    k = tl.arange(0, BLOCK_K)[None, :]
    inside = seen_L[:, None] & (k < K)
    head = head_L[:, None]
    if KIND == 0:
        return tl.load(values_ptr + head * K + k, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(params_ptr + head * 2, mask=seen_L[:, None], other=0.0).to(tl.float32)
    low = tl.load(params_ptr + head * 2 + 1, mask=seen_L[:, None], other=0.0).to(tl.float32)
    if KIND == 1:
        codes = tl.load(values_ptr + head * K + k, mask=inside, other=0)
    else:
        # Channel d lies in byte d % (K / 2): the low nibble for the first half of the head, the high one behind.
        packed = tl.load(values_ptr + head * (K // 2) + k % (K // 2), mask=inside, other=0)
        codes = tl.where(k < K // 2, packed & 15, packed >> 4)
    return tl.where(k < K, codes.to(tl.float32) * scale + low, 0.0)
