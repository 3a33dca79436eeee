"""What a runner sees of a model, whatever its family.

`build_model(folder, ModelBuild) -> Model` lives in `models/build.py`; pure facts from config.json (no weights read) are
`read_spec(folder, config) -> ModelSpec` in `models/spec.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tokenmill.engine.contract import RopeBase
from tokenmill.kernels.meta import RowMeta
from tokenmill.kv.contract import KVPages


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Layers that share a block table: their indices, and the window they see (None: everything)."""

    name: str
    layers: tuple[int, ...]
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """A vision tower in numbers. Vectors are kept in tiles of `tile_tokens`; an image has `most_tiles` by default.

    An image's bytes lie as [pieces, *piece]: a piece is a whole tile, or with `grids` one patch, `tile_pieces` of which
    a full tile of vectors has. `grids`: an image is encoded whole, comes in any number of rows and columns, and its
    tokens are turned by them. `ahead`: an image's tokens see each other, whichever comes first. `params` of tower and
    projector; `tile_work`: numbers alive at once while one tile is encoded.
    """

    piece: tuple[int, ...]
    tile_tokens: int
    most_tiles: int
    params: int
    tile_work: int
    tile_pieces: int = 1
    grids: bool = False
    ahead: bool = False

    def shape(self, num_tokens: int) -> tuple[int, ...]:
        """Of the bytes of an image that becomes so many vectors."""
        return (num_tokens * self.tile_pieces // self.tile_tokens, *self.piece)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Facts a runner and a memory plan need, from config.json alone.

    num_heads, num_kv_heads are of the whole model (before tensor parallel). `linear_params` counts the weights of
    decoder linears, `other_params` embeddings, head and norms: the memory plan prices them by weight format.
    `latent`: the cache holds one vector a token for K and V alike; num_kv_heads and head_dim then are that vector's.
    `generates`: False for reward models, which have no head.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_tokens: int
    dtype: str
    groups: tuple[AttentionGroup, ...]
    rope: RopeBase | None
    linear_params: int
    other_params: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    logn: bool = False
    latent: bool = False
    generates: bool = True
    vision: VisionSpec | None = None


class Vision(Protocol):
    """A vision tower on its device, whole on every rank."""

    spec: VisionSpec

    def __call__(self, pieces: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        """Bytes [pieces, *piece] of several images on the device become vectors [V, D] of the language model.

        Images lie one behind the other, `grids` says which; families whose tiles stand alone do not read it.
        """
        ...


class Model(Protocol):
    """A model on its device, of this rank's share. All tensors packed: T tokens of all rows."""

    spec: ModelSpec
    vision: Vision | None

    def embed(self, ids_T: Tensor) -> Tensor:
        """The token embeddings [T, D], for those who put others in their place."""
        ...

    def rope(self, bases_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [T, K // 2] fp32 for each token, from its slot's rope base (0: the model's own).

        Positions [T], or [3, T] along time, rows and columns for a model that turns images by their grid.
        """
        ...

    def logn(self, positions_T: Tensor) -> Tensor | None:
        """LogN attention's factor on q, fp32 [T], for `RowMeta.logn_T`; None for a model without it."""
        ...

    def forward(
        self, ids_T: Tensor, rows: RowMeta, caches: tuple[KVPages, ...], embeds_TD: Tensor | None = None
    ) -> Tensor:
        """Hidden states [T, D] after the final norm. `caches` by layer. Writes K and V of every token with a place.

        `embeds_TD`, where given, stands in for the token embeddings.
        """
        ...

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """fp32 [R, V] of chosen positions, gathered over ranks."""
        ...

    def pool(self, hidden_RD: Tensor) -> Tensor:
        """What rows come to, fp32 [R, n]: their hidden states, or a reward model's score (n = 1)."""
        ...
