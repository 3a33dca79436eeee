"""CLIP's way with a picture: the shorter side becomes `size`, and the middle square of that is the one tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from tokenmill.vision.cutting import Grid, Pixels


@dataclass(frozen=True, slots=True)
class Crop:
    """uint8 [1, size, size, 3]; what lies outside the middle square is not seen. A `cutting.Cutting`."""

    kind: ClassVar[str] = "crop"
    size: int = 336

    def cut(self, image: Image.Image) -> tuple[Pixels, Grid]:
        size, short = self.size, min(image.width, image.height)
        longer = int(size * max(image.width, image.height) / short)
        width, height = (size, longer) if image.width <= image.height else (longer, size)
        whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        top, left = (height - size) // 2, (width - size) // 2
        return np.ascontiguousarray(whole[None, top : top + size, left : left + size]), ()

    def limited(self, most_tiles: int) -> Crop:
        return self


CUTTING = Crop
