"""Qwen2-VL's and Qwen2.5-VL's way with an image: one size near its own, and patches, four neighbours together.

Both sides become multiples of two patches and their product stays between two limits. A still picture is one frame
shown twice, so its patches lie here once; the tower knows that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from tokenmill.errors import ConfigError
from tokenmill.vision.cutting import Grid, Pixels
from tokenmill.vision.decode import refuse
from tokenmill.vision.facts import PictureFamily

MOST_ASPECT = 200
# Where the folder's processor says nothing.
LEAST_PIXELS, MOST_PIXELS = 56 * 56, 28 * 28 * 1280
MERGE = 2


@dataclass(frozen=True, slots=True)
class Patching:
    """`patch`: pixels along a patch's side. A `cutting.Cutting`; bytes are [patches, 3, patch, patch]."""

    kind: ClassVar[str] = "qwen_vl"
    patch: int = 14
    min_pixels: int = LEAST_PIXELS
    max_pixels: int = MOST_PIXELS

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that a picture is shown in. Raises RequestError on a strip."""
        if max(width, height) > MOST_ASPECT * min(width, height):
            raise refuse(f"the image is {width} x {height} pixels; one side is at most {MOST_ASPECT} times the other")
        step = self.patch * MERGE
        shown = round(width / step) * step * round(height / step) * step
        if shown > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            return self._floor(width / shrink), self._floor(height / shrink)
        if shown < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            return math.ceil(width * grow / step) * step, math.ceil(height * grow / step) * step
        return round(width / step) * step, round(height / step) * step

    def _floor(self, side: float) -> int:
        step = self.patch * MERGE
        return max(step, math.floor(side / step) * step)

    def cut(self, image: Image.Image) -> tuple[Pixels, Grid]:
        width, height = self.size(image.width, image.height)
        whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        rows, columns = height // (self.patch * MERGE), width // (self.patch * MERGE)
        split = whole.reshape(rows, MERGE, self.patch, columns, MERGE, self.patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        return np.ascontiguousarray(split.reshape(-1, 3, self.patch, self.patch)), (rows, columns)

    def between(self, min_pixels: int | None, max_pixels: int | None) -> Patching:
        least, most = min_pixels or self.min_pixels, max_pixels or self.max_pixels
        if not self.min_pixels <= least <= most <= self.max_pixels:
            raise refuse(
                f"min_pixels {least} and max_pixels {most} must lie in this order between {self.min_pixels} and "
                f"{self.max_pixels}"
            )
        return replace(self, min_pixels=least, max_pixels=most)

    def limited(self, most_tiles: int) -> Patching:
        """There are no tiles to limit."""
        return self


def patching_of(config: dict[str, Any], processor: dict[str, Any]) -> Patching:
    """The processor's limits, in its older or its newer words."""
    patch = int(config["vision_config"].get("patch_size", 14))
    size = processor.get("size") or {}
    least = int(processor.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or LEAST_PIXELS)
    most = int(processor.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or MOST_PIXELS)
    for key, served in {"patch_size": patch, "merge_size": MERGE, "temporal_patch_size": 2}.items():
        if processor.get(key, served) != served:
            raise ConfigError(f"preprocessor_config.json: {key} is {processor[key]!r}; only {served} is served")
    if not 0 < least <= most:
        raise ConfigError(f"preprocessor_config.json: images have {least} to {most} pixels; the first must be smaller")
    return Patching(patch, least, most)


CUTTING = Patching
PICTURES = PictureFamily(
    architectures=("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
    cutting=patching_of,
    tile_tokens=lambda config: 1,
    start="<|vision_start|>",
    context="<|image_pad|>",
    end="<|vision_end|>",
    joiner="",
)
