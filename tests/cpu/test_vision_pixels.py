"""Tiles and normalisation, bit by bit against transformers' processor (the authors' tiling, on Pillow)."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.pictures import picture
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from tokenmill.models.llava import MEAN as CLIP_MEAN
from tokenmill.models.llava import STD as CLIP_STD
from tokenmill.vision.crop import Crop
from tokenmill.vision.tiles import Tiling, best_grid, count_tiles, cut, scale_table

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("width", "height", "tiling"),
    [
        (60, 45, Tiling(56)), (56, 56, Tiling(56)), (30, 30, Tiling(56)), (190, 108, Tiling(56)),
        (50, 100, Tiling(56)), (400, 50, Tiling(56)), (128, 96, Tiling(56, max_tiles=6)), (500, 301, Tiling(448)),
        (300, 300, Tiling(56, max_tiles=1)), (7, 900, Tiling(28, max_tiles=24)),
    ],
)  # fmt: skip
def test_tiles_equal_transformers(width: int, height: int, tiling: Tiling) -> None:
    image = picture(width, height, width)
    theirs = GotOcr2ImageProcessorPil(
        size={"height": tiling.size, "width": tiling.size}, crop_to_patches=True, min_patches=tiling.min_tiles,
        max_patches=tiling.max_tiles, image_mean=MEAN, image_std=STD,
    )(image, return_tensors="np")["pixel_values"]  # fmt: skip
    tiles = cut(image, tiling)
    table = scale_table(MEAN, STD)
    ours = np.stack([table[channel][tiles[..., channel]] for channel in range(3)], 1)
    assert ours.dtype == np.float32 and np.array_equal(ours, theirs)
    assert len(tiles) == count_tiles(width, height, tiling) <= tiling.most_tiles


def test_grids_of_many_sizes() -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 3000, (4000, 2)).tolist():
        most = int(rng.choice([1, 6, 12, 24]))
        theirs = get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
        assert best_grid(width, height, Tiling(max_tiles=most)) == tuple(theirs)


@pytest.mark.parametrize(
    ("width", "height", "most", "tiles"),
    [(448, 448, 12, 1), (300, 300, 12, 1), (640, 480, 12, 13), (800, 600, 12, 13), (1024, 1024, 12, 10),
     (1920, 1080, 12, 9), (500, 1000, 12, 3), (4000, 500, 12, 9), (900, 300, 12, 4), (640, 480, 6, 7)],
)  # fmt: skip
def test_tiles_of_published_examples(width: int, height: int, most: int, tiles: int) -> None:
    assert count_tiles(width, height, Tiling(max_tiles=most)) == tiles


@pytest.mark.parametrize(("width", "height"), [(60, 45), (56, 56), (30, 31), (190, 108), (50, 101), (400, 57), (7, 90)])
def test_crops_equal_transformers(width: int, height: int) -> None:
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    image = picture(width, height, width)
    wanted = theirs(image, return_tensors="np")["pixel_values"]
    tiles, grid = Crop(56).cut(image)
    table = scale_table(CLIP_MEAN, CLIP_STD)
    ours = np.stack([table[channel][tiles[..., channel]] for channel in range(3)], 1)
    assert grid == () and np.array_equal(ours, wanted)
