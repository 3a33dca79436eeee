"""InternVL's way with an image: a grid of square tiles near its shape, and a small whole picture as the last tile.

A tile is `size` pixels a side. Pixels travel as bytes; what the encoder computes with is `scale_table`, a value for
each byte and channel, so that host and device agree bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill.vision.cutting import Grid, Pixels

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Tiling:
    """min_tiles to max_tiles a picture, without the thumbnail that more than one tile get. A `cutting.Cutting`."""

    kind: ClassVar[str] = "tiles"
    size: int = 448
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    @property
    def most_tiles(self) -> int:
        return self.max_tiles + (1 if self.thumbnail and self.max_tiles > 1 else 0)

    def cut(self, image: Image.Image) -> tuple[Pixels, Grid]:
        return cut(image, self), ()

    def limited(self, most_tiles: int) -> Tiling:
        return replace(self, max_tiles=most_tiles, min_tiles=min(self.min_tiles, most_tiles))


@cache
def grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) in order of their count; of the same count, fewer columns first."""
    found = [(i, j) for i in range(1, most + 1) for j in range(1, most // i + 1) if least <= i * j]
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1], grid[0])))


def best_grid(width: int, height: int, tiling: Tiling) -> tuple[int, int]:
    """The grid nearest to the picture's shape; among equals a larger one only where the picture has half its pixels."""
    shape, nearest, chosen = width / height, float("inf"), (1, 1)
    for columns, rows in grids(tiling.min_tiles, tiling.max_tiles):
        off = abs(shape - columns / rows)
        if off < nearest:
            nearest, chosen = off, (columns, rows)
        elif off == nearest and width * height > 0.5 * tiling.size**2 * columns * rows:
            chosen = (columns, rows)
    return chosen


def count_tiles(width: int, height: int, tiling: Tiling) -> int:
    columns, rows = best_grid(width, height, tiling)
    return columns * rows + (1 if tiling.thumbnail and columns * rows > 1 else 0)


def cut(image: Image.Image, tiling: Tiling) -> Pixels:
    """uint8 [tiles, size, size, 3], row by row; the thumbnail last."""
    size = tiling.size
    columns, rows = best_grid(image.width, image.height, tiling)
    whole = np.asarray(image.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
    tiles = whole.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(rows * columns, size, size, 3)
    if tiling.thumbnail and len(tiles) > 1:
        small = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
        tiles = np.concatenate([tiles, small[None]])
    return np.ascontiguousarray(tiles)


def scale_table(mean: Triple, std: Triple) -> NDArray[np.float32]:
    """float32 [3, 256]: what each byte of each channel becomes: (byte / 255 - mean) / std, each step in float32."""
    values = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    table = (values[None] - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]
    return table.astype(np.float32)


CUTTING = Tiling
