"""What a folder of InternVL in Hugging Face's form says about pictures: the authors' tiles, from other keys."""

from __future__ import annotations

from typing import Any

from tokenmill.vision.facts import PictureFamily
from tokenmill.vision.tiles import Tiling

# transformers' defaults of the tower and of the image processor.
SIDE, PATCH, LEAST, MOST = 448, 14, 1, 12


def tiling_of(config: dict[str, Any], processor: dict[str, Any]) -> Tiling:
    """As transformers' processor of InternVL, which cuts whatever its file says of `crop_to_patches`."""
    least, most = int(processor.get("min_patches", LEAST)), int(processor.get("max_patches", MOST))
    return Tiling(_side(config, "image_size", SIDE), least, most)


def tile_tokens(config: dict[str, Any]) -> int:
    side = _side(config, "image_size", SIDE) // _side(config, "patch_size", PATCH)
    return int(side * float(config.get("downsample_ratio", 0.5))) ** 2


def _side(config: dict[str, Any], key: str, default: int) -> int:
    """Of a square, which a number or height and width give."""
    value = config["vision_config"].get(key, default)
    return int(value[0] if isinstance(value, list) else value)


PICTURES = PictureFamily(
    ("InternVLForConditionalGeneration",), tiling_of, tile_tokens, "<img>", "<IMG_CONTEXT>", "</img>", joiner="",
    around=("", "\n"),
)  # fmt: skip
