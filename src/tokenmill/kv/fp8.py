"""KV kind `fp8`: e4m3 values with one fp16 scale per token and head, s = max|x| / 448, x' = value * s.

Planes k, v: uint8 [blocks, S, G, K] holding float8_e4m3fn bits (bytes, because indexed stores of fp8 are not offered
on every device); k_scale, v_scale: fp16 [blocks, S, G, 1]. A scale per token needs no calibration, whatever the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import SPARE_BLOCKS, blocks, flat

E4M3_MAX = 448.0
SCALE_BYTES = 2
LEAST_SCALE = 2.0**-14


class Fp8Kind:
    name = "fp8"

    def bytes_per_token(self, num_heads: int, head_dim: int, itemsize: int) -> int:
        return 2 * num_heads * (head_dim + SCALE_BYTES)

    def alloc(self, num_blocks: int, shape: KVShape, dtype: torch.dtype, device: torch.device) -> KVPages:
        lead = (num_blocks + SPARE_BLOCKS, shape.block_tokens, shape.num_heads)
        planes = {}
        for name in ("k", "v"):
            planes[name] = torch.zeros(*lead, shape.head_dim, dtype=torch.uint8, device=device)
            planes[f"{name}_scale"] = torch.zeros(*lead, 1, dtype=torch.float16, device=device)
        return KVPages(self, shape, planes)

    def write(self, pages: KVPages, k_TGK: Tensor, v_TGK: Tensor, writes_T: Tensor) -> None:
        for name, x_TGK in (("k", k_TGK), ("v", v_TGK)):
            codes, scale = encode(x_TGK)
            flat(pages.planes[name])[writes_T] = codes
            flat(pages.planes[f"{name}_scale"])[writes_T] = scale

    def gather(self, pages: KVPages, index_RL: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (
            decode(flat(pages.planes[name])[index_RL], flat(pages.planes[f"{name}_scale"])[index_RL])
            for name in ("k", "v")
        )
        return k, v

    def read(self, pages: KVPages, tables_RB: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (
            decode(blocks(pages.planes[name], tables_RB), blocks(pages.planes[f"{name}_scale"], tables_RB))
            for name in ("k", "v")
        )
        return k, v


def encode(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] -> e4m3 bits uint8 [..., K] and scale fp16 [..., 1]."""
    x = x.float()
    scale = (x.abs().amax(-1, keepdim=True) / E4M3_MAX).clamp(min=LEAST_SCALE).half()
    # The rounded scale may be a little small: clamp, because e4m3 has no infinity to saturate to.
    scaled = (x / scale.float()).clamp(-E4M3_MAX, E4M3_MAX)
    return scaled.to(torch.float8_e4m3fn).view(torch.uint8), scale


def decode(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.view(torch.float8_e4m3fn).float() * scale.float()


KIND = Fp8Kind()
