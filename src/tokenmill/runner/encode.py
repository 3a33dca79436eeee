"""Pictures in the runner: their vectors in one bounded arena, by digest, in pages of a tile's vectors.

`HostImages` gives pages to what a plan encodes and knows where each picture's vectors lie; `Encoder` reads pixels and
fills the pages, a batch at a time. The scheduler decides what is kept. A picture whose file is gone or of another size
gets vectors that are not numbers, so that whoever looks at it, and nobody else, ends with an error.

E pages of the arena, T vectors of a page, D hidden, V vectors of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenmill.engine.contract import I32, Encode, Row
from tokenmill.log import get_logger
from tokenmill.models.contract import Vision, VisionSpec


@dataclass(frozen=True, slots=True)
class EncodeWork:
    """A picture's file, where in the arena its vectors go, and their grid."""

    source: str
    places: I32
    grid: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Kept:
    pages: I32
    num_tokens: int


class HostImages:
    """Who has which pages. `tile_tokens` 0: the model takes no pictures. `grids`: one need not fill its last page."""

    def __init__(self, num_pages: int, tile_tokens: int, grids: bool = False):
        self.tile_tokens, self.grids = tile_tokens, grids
        self._free = list(range(num_pages - 1, -1, -1))
        self._kept: dict[str, _Kept] = {}

    def apply(self, dropped: list[str], encode: list[Encode]) -> list[EncodeWork]:
        """Pages for what is to be encoded. Raises ValueError on what there is no room for."""
        for digest in dropped:
            if digest not in self._kept:
                raise ValueError(f"image {digest[:16]} is dropped but is not here")
            self._free += self._kept.pop(digest).pages[::-1].tolist()
        return [self._take(item) for item in encode]

    def _take(self, item: Encode) -> EncodeWork:
        if not self.tile_tokens:
            raise ValueError("the plan encodes images, which this model cannot")
        tiles, rest = -(-item.num_tokens // self.tile_tokens), item.num_tokens % self.tile_tokens
        if (rest and not self.grids) or not 0 < tiles <= len(self._free) or item.digest in self._kept:
            room = f"{len(self._free)} tiles are free"
            raise ValueError(f"image {item.digest[:16]} of {item.num_tokens} vectors cannot be kept: {room}")
        pages = np.asarray([self._free.pop() for _ in range(tiles)], np.int32)
        self._kept[item.digest] = _Kept(pages, item.num_tokens)
        return EncodeWork(item.source, self._vectors(item.digest, 0, item.num_tokens), item.grid)

    def places(self, rows: list[Row], firsts: I32) -> tuple[I32, I32]:
        """Positions among the step's tokens that pictures fill, and the arena's vectors that fill them.

        `firsts[i]`: where rows[i] begins among the step's tokens.
        """
        to: list[I32] = []
        source: list[I32] = []
        for row, first in zip(rows, firsts.tolist(), strict=True):
            for part in row.embeds:
                vectors = self._vectors(part.digest, part.start, part.count)
                if part.offset < 0 or part.offset + part.count > row.num_tokens:
                    raise ValueError(f"slot {row.slot} puts an image outside its row")
                to.append(np.arange(first + part.offset, first + part.offset + part.count, dtype=np.int32))
                source.append(vectors)
        none: I32 = np.zeros(0, np.int32)
        return (np.concatenate(to), np.concatenate(source)) if to else (none, none)

    def _vectors(self, digest: str, start: int, count: int) -> I32:
        kept = self._kept.get(digest)
        if kept is None or count < 1 or not 0 <= start <= kept.num_tokens - count:
            raise ValueError(f"image {digest[:16]} is not here, or has no vectors {start}..{start + count - 1}")
        at = np.arange(start, start + count, dtype=np.int32)
        vectors: I32 = kept.pages[at // self.tile_tokens] * self.tile_tokens + at % self.tile_tokens
        return vectors


@dataclass(frozen=True, slots=True)
class _Piece:
    """What may be encoded apart: a tile, or a whole picture with its grid. Bytes [pieces, *piece], places in the arena.
    """

    pixels: Tensor
    places: I32
    grid: tuple[int, ...]


class Encoder:
    """The arena [E, T, D] on the device. Methods run in the lane."""

    def __init__(self, vision: Vision, num_pages: int, like: Tensor, batch_tiles: int):
        """`like`: any tensor of the language model's dtype, device and width."""
        self.vision, self.batch_tokens = vision, batch_tiles * vision.spec.tile_tokens
        shape = (num_pages, vision.spec.tile_tokens, like.shape[-1])
        self.arena_ETD = torch.zeros(shape, dtype=like.dtype, device=like.device)

    @property
    def nbytes(self) -> int:
        return self.arena_ETD.nbytes

    def encode(self, works: list[EncodeWork]) -> None:
        """Fills the places of every picture; tiles of several, and small pictures, share a batch."""
        flat_VD = self.arena_ETD.flatten(0, 1)
        good: list[_Piece] = []
        for work in works:
            pixels = _read(work, self.vision.spec)
            if pixels is None:
                flat_VD[self._there(work.places)] = math.nan
            else:
                good += _pieces(work, pixels, self.vision.spec)
        for batch in _batches(good, self.batch_tokens):
            pixels = self._upload(torch.cat([piece.pixels for piece in batch]))
            vectors_VD = self.vision(pixels, [piece.grid for piece in batch])
            flat_VD[self._there(np.concatenate([piece.places for piece in batch]))] = vectors_VD.to(flat_VD.dtype)

    def clear(self) -> None:
        """Gives the arena's memory back; what lay in it is lost."""
        self.arena_ETD.untyped_storage().resize_(0)

    def refill(self) -> None:
        """Takes the memory again, where it was given back."""
        self.arena_ETD.untyped_storage().resize_(self.nbytes)
        self.arena_ETD.zero_()

    def put(self, embeds_TD: Tensor, to: Tensor, source: Tensor) -> Tensor:
        """The embeddings with pictures' vectors in their places."""
        return embeds_TD.index_copy(0, to.long(), self.arena_ETD.flatten(0, 1)[source.long()].to(embeds_TD.dtype))

    def _there(self, places: I32) -> Tensor:
        return self._upload(torch.from_numpy(places)).long()

    def _upload(self, host: Tensor) -> Tensor:
        device = self.arena_ETD.device
        # Pinned, so that nothing waits for the device.
        return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _read(work: EncodeWork, spec: VisionSpec) -> Tensor | None:
    """A picture's bytes [pieces, *piece]; None where the file is not what it must be."""
    try:
        data = np.fromfile(Path(work.source), np.uint8)
        return torch.from_numpy(data.reshape(spec.shape(len(work.places))))
    except (OSError, ValueError) as error:
        get_logger().warning("an image's pixels are gone, so requests that show it fail: %s", type(error).__name__)
        return None


def _pieces(work: EncodeWork, pixels: Tensor, spec: VisionSpec) -> list[_Piece]:
    if spec.grids:
        return [_Piece(pixels, work.places, work.grid)]
    each = work.places.reshape(len(pixels), -1)
    return [_Piece(tile, places, ()) for tile, places in zip(torch.split(pixels, 1), each, strict=True)]


def _batches(pieces: list[_Piece], most_tokens: int) -> Iterator[list[_Piece]]:
    """In order, as many as make `most_tokens` vectors; at least one."""
    batch: list[_Piece] = []
    for piece in pieces:
        if batch and sum(len(one.places) for one in batch) + len(piece.places) > most_tokens:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch
