"""Pictures in the runner: their vectors in one bounded arena, by digest, a page a tile.

`HostImages` gives pages to what a plan encodes and knows where each picture's vectors lie; `Encoder` reads pixels and
fills the pages, a batch of tiles at a time. The scheduler decides what is kept. A picture whose file is gone or of
another size gets vectors that are not numbers, so that whoever looks at it, and nobody else, ends with an error.

E pages of the arena, T vectors of a tile, D hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenmill.engine.contract import I32, Encode, Row
from tokenmill.log import get_logger
from tokenmill.models.contract import Vision


@dataclass(frozen=True, slots=True)
class EncodeWork:
    """A picture's file, and the pages its tiles fill."""

    source: str
    pages: I32


class HostImages:
    """Who has which pages. `tile_tokens` 0: the model takes no pictures."""

    def __init__(self, num_pages: int, tile_tokens: int):
        self.tile_tokens = tile_tokens
        self._free = list(range(num_pages - 1, -1, -1))
        self._pages: dict[str, I32] = {}

    def apply(self, dropped: list[str], encode: list[Encode]) -> list[EncodeWork]:
        """Pages for what is to be encoded. Raises ValueError on what there is no room for."""
        for digest in dropped:
            if digest not in self._pages:
                raise ValueError(f"image {digest[:16]} is dropped but is not here")
            self._free += self._pages.pop(digest)[::-1].tolist()
        return [self._take(item) for item in encode]

    def _take(self, item: Encode) -> EncodeWork:
        if not self.tile_tokens:
            raise ValueError("the plan encodes images, which this model cannot")
        tiles, rest = divmod(item.num_tokens, self.tile_tokens)
        if rest or not 0 < tiles <= len(self._free) or item.digest in self._pages:
            room = f"{len(self._free)} tiles are free"
            raise ValueError(f"image {item.digest[:16]} of {item.num_tokens} vectors cannot be kept: {room}")
        pages = np.asarray([self._free.pop() for _ in range(tiles)], np.int32)
        self._pages[item.digest] = pages
        return EncodeWork(item.source, pages)

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
        pages = self._pages.get(digest)
        if pages is None or count < 1 or not 0 <= start <= len(pages) * self.tile_tokens - count:
            raise ValueError(f"image {digest[:16]} is not here, or has no vectors {start}..{start + count - 1}")
        at = np.arange(start, start + count, dtype=np.int32)
        vectors: I32 = pages[at // self.tile_tokens] * self.tile_tokens + at % self.tile_tokens
        return vectors


class Encoder:
    """The arena [E, T, D] on the device. Methods run in the lane."""

    def __init__(self, vision: Vision, num_pages: int, like: Tensor, batch_tiles: int):
        """`like`: any tensor of the language model's dtype, device and width."""
        self.vision, self.batch_tiles = vision, batch_tiles
        shape = (num_pages, vision.spec.tile_tokens, like.shape[-1])
        self.arena_ETD = torch.zeros(shape, dtype=like.dtype, device=like.device)

    @property
    def nbytes(self) -> int:
        return self.arena_ETD.nbytes

    def encode(self, works: list[EncodeWork]) -> None:
        """Fills the pages of every picture; tiles of several share a batch."""
        found = [(work.pages, _read_tiles(work, self.vision.spec.tile_size)) for work in works]
        for pages, tiles in found:
            if tiles is None:
                self.arena_ETD[self._there(pages)] = math.nan
        good = [(pages, tiles) for pages, tiles in found if tiles is not None]
        if not good:
            return
        pages = np.concatenate([pages for pages, _ in good])
        tiles = torch.cat([tiles for _, tiles in good])
        for first in range(0, len(pages), self.batch_tiles):
            part = slice(first, first + self.batch_tiles)
            self.arena_ETD[self._there(pages[part])] = self.vision(self._upload(tiles[part])).to(self.arena_ETD.dtype)

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

    def _there(self, pages: I32) -> Tensor:
        return self._upload(torch.from_numpy(pages)).long()

    def _upload(self, host: Tensor) -> Tensor:
        device = self.arena_ETD.device
        # Pinned, so that nothing waits for the device.
        return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _read_tiles(work: EncodeWork, size: int) -> Tensor | None:
    """uint8 [tiles, size, size, 3]; None where the file is not what it must be."""
    try:
        data = np.fromfile(Path(work.source), np.uint8)
        return torch.from_numpy(data.reshape(len(work.pages), size, size, 3))
    except (OSError, ValueError) as error:
        get_logger().warning("an image's pixels are gone, so requests that show it fail: %s", type(error).__name__)
        return None
