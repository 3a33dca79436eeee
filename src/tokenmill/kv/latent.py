"""KV kind of latent attention: one vector a token, which is key and value alike. Plane c: [blocks, S, 1, K].

Not a choice of the user's: models with latent attention have it in place of `auto`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import SPARE_BLOCKS, blocks, flat


class LatentKind:
    """The vector as it is, in the model's dtype."""

    name = "latent"

    def bytes_per_token(self, num_heads: int, head_dim: int, itemsize: int) -> int:
        return num_heads * head_dim * itemsize

    def alloc(self, num_blocks: int, shape: KVShape, dtype: torch.dtype, device: torch.device) -> KVPages:
        size = (num_blocks + SPARE_BLOCKS, shape.block_tokens, shape.num_heads, shape.head_dim)
        return KVPages(self, shape, {"c": torch.zeros(size, dtype=dtype, device=device)})

    def write(self, pages: KVPages, k_TGK: Tensor, v_TGK: Tensor, writes_T: Tensor) -> None:
        """`v_TGK` is `k_TGK` again."""
        plane = flat(pages.planes["c"])
        plane[writes_T] = k_TGK.to(plane.dtype)

    def gather(self, pages: KVPages, index_RL: Tensor) -> tuple[Tensor, Tensor]:
        c_RLGK = flat(pages.planes["c"])[index_RL].float()
        return c_RLGK, c_RLGK

    def read(self, pages: KVPages, tables_RB: Tensor) -> tuple[Tensor, Tensor]:
        c_RLGK = blocks(pages.planes["c"], tables_RB).float()
        return c_RLGK, c_RLGK


KIND = LatentKind()
