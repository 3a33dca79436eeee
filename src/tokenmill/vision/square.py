"""SigLIP's way with a picture: the whole of it as one square tile, whatever its shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from tokenmill.vision.cutting import Grid, Pixels


@dataclass(frozen=True, slots=True)
class Square:
    """uint8 [1, size, size, 3], resized between neighbours in both directions. A `cutting.Cutting`."""

    kind: ClassVar[str] = "square"
    size: int = 896

    def cut(self, image: Image.Image) -> tuple[Pixels, Grid]:
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))[None].copy(), ()

    def limited(self, most_tiles: int) -> Square:
        return self


CUTTING = Square
