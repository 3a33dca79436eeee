"""How a family's pictures become the bytes its tower reads. The seam between decoding and a family's file.

A module of this room that holds `CUTTING` (a frozen dataclass of plain values that is a `Cutting`) is found by its
name, in the process that decodes, too: its fields travel there as JSON.
"""

from __future__ import annotations

from dataclasses import asdict
from hashlib import blake2b
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill import find

PACKAGE = "tokenmill.vision"
Pixels = NDArray[np.uint8]
# Rows and columns of a picture's vectors; () where they stand in a line, or in tiles.
Grid = tuple[int, ...]


class Cutting(Protocol):
    """`kind`: the module it lies in."""

    kind: ClassVar[str]

    def cut(self, image: Image.Image) -> tuple[Pixels, Grid]:
        """Bytes of an RGB picture, pieces along the first axis. Raises RequestError on a shape that is not taken."""
        ...

    def limited(self, most_tiles: int) -> Cutting:
        """The same for a picture that may have so many tiles; itself where it knows none."""
        ...


@runtime_checkable
class Sized(Protocol):
    """A cutting in which a picture may have limits of its own, within the folder's."""

    def between(self, min_pixels: int | None, max_pixels: int | None) -> Cutting:
        """Raises RequestError on limits outside the folder's."""
        ...


def describe(cutting: Cutting) -> dict[str, Any]:
    """As JSON can hold it."""
    return {"kind": cutting.kind, "options": asdict(cutting)}  # type: ignore[call-overload]


def from_description(told: dict[str, Any]) -> Cutting:
    kind: Any = find.load(PACKAGE, str(told["kind"])).CUTTING
    made: Cutting = kind(**told["options"])
    return made


def digest_of(pixels: Pixels, grid: Grid = ()) -> str:
    """Names the content: two files that show the encoder the same pixels in the same places are one image."""
    head = f"{pixels.shape}{grid or ''}".encode()
    return blake2b(head + pixels.tobytes(), digest_size=16).hexdigest()
