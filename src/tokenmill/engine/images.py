"""Which pictures the runner holds as vectors: a bounded store by digest, least recently used out first.

A picture is encoded in the plan of the first chunk that reaches into it, and stays while there is room, so that later
chunks, requests and turns find it. What a plan uses is not dropped in that plan; whatever it drops or encodes is told
in it, drops first. Room is counted in tiles, the unit in which the runner keeps vectors; an image with a grid may end
within one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from tokenmill.engine.contract import I32, Capacity, Embeds, Encode
from tokenmill.types import MediaRef


class ImageCache:
    """`num_free` tiles are left. Owned by the scheduler's thread."""

    def __init__(self, capacity: Capacity) -> None:
        self.tile_tokens = max(capacity.tile_tokens, 1)
        self.num_free = capacity.image_tiles
        self._tiles: OrderedDict[str, int] = OrderedDict()
        self._used_in: dict[str, int] = {}
        self._encode: list[Encode] = []
        self._dropped: list[str] = []

    def claim(self, image: MediaRef, step: int) -> bool:
        """Has the picture's vectors there for this step; False where what else the step uses leaves no room."""
        if image.digest not in self._tiles and not self._bring(image, step):
            return False
        self._tiles.move_to_end(image.digest)
        self._used_in[image.digest] = step
        return True

    def changes(self) -> tuple[list[Encode], list[str]]:
        """What to encode and what to drop in this plan; told once."""
        encode, dropped = self._encode, self._dropped
        self._encode, self._dropped = [], []
        return encode, dropped

    def forget(self, images: Iterable[MediaRef]) -> None:
        """Drops pictures whose vectors may be bad: what looked at them was not finite."""
        for image in images:
            if image.digest in self._tiles:
                self._drop(image.digest)

    def clear(self) -> None:
        """Forgets all of them: the runner has lost every vector, and needs no telling."""
        self.num_free += sum(self._tiles.values())
        self._tiles.clear()
        self._used_in.clear()
        self._encode, self._dropped = [], []

    def _bring(self, image: MediaRef, step: int) -> bool:
        tiles = -(-image.num_tokens // self.tile_tokens)
        idle = [digest for digest in self._tiles if self._used_in[digest] != step]
        if self.num_free + sum(self._tiles[digest] for digest in idle) < tiles:
            return False
        for digest in idle:
            if self.num_free >= tiles:
                break
            self._drop(digest)
        self.num_free -= tiles
        self._tiles[image.digest] = tiles
        self._encode.append(Encode(image.digest, image.source, image.num_tokens, image.grid))
        return True

    def _drop(self, digest: str) -> None:
        self.num_free += self._tiles.pop(digest)
        del self._used_in[digest]
        self._dropped.append(digest)


def overlapping(media: tuple[MediaRef, ...], start: int, end: int) -> list[MediaRef]:
    """Pictures with positions in [start, end), in order."""
    return [image for image in media if image.offset < end and start < image.offset + image.num_tokens]


def embeds_of(media: tuple[MediaRef, ...], start: int, end: int) -> tuple[Embeds, ...]:
    """Which vectors fill positions [start, end) of a prompt, as a row of these positions is told."""
    found = []
    for image in overlapping(media, start, end):
        first, last = max(start, image.offset), min(end, image.offset + image.num_tokens)
        found.append(Embeds(first - start, image.digest, first - image.offset, last - first))
    return tuple(found)


def uncut(media: tuple[MediaRef, ...], start: int, count: int, most: int) -> int:
    """The length, up to `most`, of a chunk of about `count` positions that ends within no picture; 0: there is none."""
    end = start + count
    for image in overlapping(media, end, end + 1):
        behind = image.offset + image.num_tokens - start
        return count if image.offset == end else behind if behind <= most else max(image.offset - start, 0)
    return count


def turns_of(media: tuple[MediaRef, ...], start: int, end: int) -> I32 | None:
    """What positions [start, end) are turned by along time, rows and columns, int32 [3, end - start].

    Text counts on by one. A picture's tokens all have its first token's count, plus their row and their column in its
    grid; text behind it goes on from the longer side. None where all grids lie before `start`: there
    `shift_of` says it.
    """
    grids = [image for image in media if image.grid]
    if not grids or grids[-1].offset + grids[-1].num_tokens <= start:
        return None
    order = np.arange(start, end, dtype=np.int32)
    turns = np.tile(order, (3, 1))
    shift = 0
    for image in grids:
        place = order - image.offset
        inside, behind = (place >= 0) & (place < image.num_tokens), place >= image.num_tokens
        turns[:, inside] = image.offset + shift
        turns[1, inside] += place[inside] // image.grid[1]
        turns[2, inside] += place[inside] % image.grid[1]
        shift += max(image.grid) - image.num_tokens
        turns[:, behind] = order[behind] + shift
    return turns


def shift_of(media: tuple[MediaRef, ...]) -> int:
    """How far tokens behind the last picture are turned beyond their position: never more than 0."""
    return sum(max(image.grid) - image.num_tokens for image in media if image.grid)
