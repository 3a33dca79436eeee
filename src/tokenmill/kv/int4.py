"""KV kind `int4`: 4-bit codes of Hadamard-rotated K and V; planes as `int4-plain`. The 4-bit default.

The rotation spreads a few large channels over all of them, which recovers nearly all that plain 4-bit loses (SAW-INT4,
arXiv 2604.19157). K is rotated after RoPE. Attention may rotate its queries and its result instead of rotating back
what it reads (`Rotating`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.int4_plain import Int4PlainKind
from tokenmill.kv.rotate import hadamard, rotate


class Int4Kind(Int4PlainKind):
    name = "int4"

    def alloc(self, num_blocks: int, shape: KVShape, dtype: torch.dtype, device: torch.device) -> KVPages:
        if shape.head_dim & (shape.head_dim - 1):
            raise ConfigError(
                f"KV cache int4 rotates heads of a power of two channels; this model's head_dim is {shape.head_dim}: "
                "use --kv int4-plain or int8"
            )
        # Made here, so that no step (and no graph capture) makes it.
        hadamard(shape.head_dim, torch.device(device))
        return super().alloc(num_blocks, shape, dtype, device)

    def encode(self, x: Tensor) -> Tensor:
        return rotate(x)

    def decode(self, x: Tensor) -> Tensor:
        return rotate(x)

    def turn(self, x: Tensor) -> Tensor:
        return rotate(x)

    def read_turned(self, pages: KVPages, tables_RB: Tensor) -> tuple[Tensor, Tensor]:
        return self.stored(pages, tables_RB)


KIND = Int4Kind()
