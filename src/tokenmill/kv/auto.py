"""KV kind `auto`: K and V in the model's own dtype. Planes k, v: [blocks, S, G, K]."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import SPARE_BLOCKS, blocks, flat


class PlainKind:
    """K and V as they are."""

    name = "auto"

    def bytes_per_token(self, num_heads: int, head_dim: int, itemsize: int) -> int:
        return 2 * num_heads * head_dim * itemsize

    def alloc(self, num_blocks: int, shape: KVShape, dtype: torch.dtype, device: torch.device) -> KVPages:
        size = (num_blocks + SPARE_BLOCKS, shape.block_tokens, shape.num_heads, shape.head_dim)
        planes = {name: torch.zeros(size, dtype=dtype, device=device) for name in ("k", "v")}
        return KVPages(self, shape, planes)

    def write(self, pages: KVPages, k_TGK: Tensor, v_TGK: Tensor, writes_T: Tensor) -> None:
        for name, x_TGK in (("k", k_TGK), ("v", v_TGK)):
            plane = flat(pages.planes[name])
            plane[writes_T] = x_TGK.to(plane.dtype)

    def gather(self, pages: KVPages, index_RL: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (flat(pages.planes[name])[index_RL].float() for name in ("k", "v"))
        return k, v

    def read(self, pages: KVPages, tables_RB: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (blocks(pages.planes[name], tables_RB).float() for name in ("k", "v"))
        return k, v


KIND = PlainKind()
