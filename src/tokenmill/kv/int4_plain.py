"""KV kind `int4-plain`: LMDeploy's 4-bit cache, without rotation. Two channels a byte, scale and minimum in fp16.

Planes k, v: uint8 [blocks, S, G, K / 2] (low nibble channel d, high nibble channel d + K / 2); k_params, v_params: fp16
[blocks, S, G, 2]. Models with a large K bias lose their answers under it: `int4` rotates first and does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import SPARE_BLOCKS, blocks, flat
from tokenmill.kv.quantize import dequantize, pack4, quantize, unpack4

PARAM_BYTES = 4


class Int4PlainKind:
    name = "int4-plain"

    def bytes_per_token(self, num_heads: int, head_dim: int, itemsize: int) -> int:
        return 2 * num_heads * (head_dim // 2 + PARAM_BYTES)

    def alloc(self, num_blocks: int, shape: KVShape, dtype: torch.dtype, device: torch.device) -> KVPages:
        if shape.head_dim % 2:
            raise ConfigError(f"KV cache {self.name} needs an even head_dim, not {shape.head_dim}: use --kv int8")
        lead = (num_blocks + SPARE_BLOCKS, shape.block_tokens, shape.num_heads)
        planes = {}
        for name in ("k", "v"):
            planes[name] = torch.zeros(*lead, shape.head_dim // 2, dtype=torch.uint8, device=device)
            planes[f"{name}_params"] = torch.zeros(*lead, 2, dtype=torch.float16, device=device)
        return KVPages(self, shape, planes)

    def write(self, pages: KVPages, k_TGK: Tensor, v_TGK: Tensor, writes_T: Tensor) -> None:
        for name, x_TGK in (("k", k_TGK), ("v", v_TGK)):
            codes, params = quantize(self.encode(x_TGK), 15)
            flat(pages.planes[name])[writes_T] = pack4(codes)
            flat(pages.planes[f"{name}_params"])[writes_T] = params

    def gather(self, pages: KVPages, index_RL: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (
            dequantize(unpack4(flat(pages.planes[name])[index_RL]), flat(pages.planes[f"{name}_params"])[index_RL])
            for name in ("k", "v")
        )
        return self.decode(k), self.decode(v)

    def read(self, pages: KVPages, tables_RB: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.stored(pages, tables_RB)
        return self.decode(k), self.decode(v)

    def stored(self, pages: KVPages, tables_RB: Tensor) -> tuple[Tensor, Tensor]:
        """What was quantized, of whole tables."""
        planes = {name: blocks(plane, tables_RB) for name, plane in pages.planes.items()}
        k, v = (dequantize(unpack4(planes[name]), planes[f"{name}_params"]) for name in ("k", "v"))
        return k, v

    def encode(self, x: Tensor) -> Tensor:
        """What is quantized in place of x."""
        return x

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return x


KIND = Int4PlainKind()
