"""The KV seam: kinds of cache, their planes and their pages. Pure facts first; tensors only in `KVPages`.

A kind is one module of this room with a module-level `KIND: KVKind`. Attention reads what `write` stored, for the
chunk's own tokens too, so quantized caches give the same values under every chunking and every prefix hit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, device, dtype


@dataclass(frozen=True, slots=True)
class KVShape:
    """One layer's cache: G heads of K values for K and V each, in blocks of S tokens."""

    num_heads: int
    head_dim: int
    block_tokens: int


@dataclass(slots=True)
class KVPages:
    """One layer's cache of one kind: planes by name, each with leading dimensions [blocks + 1, S, ...] (one spare)."""

    kind: KVKind
    shape: KVShape
    planes: dict[str, Tensor]


class KVKind(Protocol):
    """A cache kind. `bytes_per_token` is pure: bytes of K and V of one token and layer, scales included."""

    name: str

    def bytes_per_token(self, num_heads: int, head_dim: int, itemsize: int) -> int: ...

    def alloc(self, num_blocks: int, shape: KVShape, dtype: dtype, device: device) -> KVPages: ...

    def write(self, pages: KVPages, k_TGK: Tensor, v_TGK: Tensor, writes_T: Tensor) -> None:
        """Stores each token at flat index writes_T (block * S + offset); -1 stores nothing. No host synchronisation."""
        ...

    def gather(self, pages: KVPages, index_RL: Tensor) -> tuple[Tensor, Tensor]:
        """K and V at flat indices [R, L], [R, L, G, K] each, dequantized to fp32: what reference attention reads."""
        ...

    def read(self, pages: KVPages, tables_RB: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of whole tables, [R, B * S, G, K] each, dequantized to fp32."""
        ...


@runtime_checkable
class Rotating(Protocol):
    """A kind that stores K and V rotated. Attention of `turn(q)` over what `read_turned` gives, turned again, is the
    attention over `read`'s: one small product a query in place of one for every token of the context."""

    def turn(self, x: Tensor) -> Tensor:
        """x [..., K] rotated, in fp32; its own inverse."""
        ...

    def read_turned(self, pages: KVPages, tables_RB: Tensor) -> tuple[Tensor, Tensor]:
        """As `read`, still rotated."""
        ...
