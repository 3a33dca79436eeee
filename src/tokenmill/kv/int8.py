"""KV kind `int8`: 8-bit codes per token and head over the head's channels, asymmetric, scale and minimum in fp16.

Planes k, v: uint8 [blocks, S, G, K]; k_params, v_params: fp16 [blocks, S, G, 2]. The formula is in `quantize.py`.
NaN and infinity in K or V survive as params that are not finite, so that a failed row is still seen to have failed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import SPARE_BLOCKS, blocks, flat
from tokenmill.kv.quantize import dequantize, quantize

PARAM_BYTES = 4


class Int8Kind:
    name = "int8"

    def bytes_per_token(self, num_heads: int, head_dim: int, itemsize: int) -> int:
        return 2 * num_heads * (head_dim + PARAM_BYTES)

    def alloc(self, num_blocks: int, shape: KVShape, dtype: torch.dtype, device: torch.device) -> KVPages:
        lead = (num_blocks + SPARE_BLOCKS, shape.block_tokens, shape.num_heads)
        planes = {}
        for name in ("k", "v"):
            planes[name] = torch.zeros(*lead, shape.head_dim, dtype=torch.uint8, device=device)
            planes[f"{name}_params"] = torch.zeros(*lead, 2, dtype=torch.float16, device=device)
        return KVPages(self, shape, planes)

    def write(self, pages: KVPages, k_TGK: Tensor, v_TGK: Tensor, writes_T: Tensor) -> None:
        for name, x_TGK in (("k", k_TGK), ("v", v_TGK)):
            codes, params = quantize(x_TGK, 255)
            flat(pages.planes[name])[writes_T] = codes
            flat(pages.planes[f"{name}_params"])[writes_T] = params

    def gather(self, pages: KVPages, index_RL: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (
            dequantize(flat(pages.planes[name])[index_RL], flat(pages.planes[f"{name}_params"])[index_RL])
            for name in ("k", "v")
        )
        return k, v

    def read(self, pages: KVPages, tables_RB: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (
            dequantize(blocks(pages.planes[name], tables_RB), blocks(pages.planes[f"{name}_params"], tables_RB))
            for name in ("k", "v")
        )
        return k, v


KIND = Int8Kind()
