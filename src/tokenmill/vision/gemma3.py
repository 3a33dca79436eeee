"""What a folder of Gemma 3 says about pictures: one square tile, pooled to a fixed number of vectors."""

from __future__ import annotations

from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.vision.facts import PictureFamily
from tokenmill.vision.square import Square

# transformers' defaults.
SIDE, VECTORS = 224, 256


def square_of(config: dict[str, Any], processor: dict[str, Any]) -> Square:
    """The tower's side. ConfigError where the image processor makes something else of a picture."""
    size = int(config["vision_config"].get("image_size", SIDE))
    said = processor.get("size", {"height": size, "width": size})
    if said != {"height": size, "width": size}:
        raise ConfigError(f"preprocessor_config.json: size is {said}; the tower takes {size} pixels a side")
    if processor.get("do_pan_and_scan"):
        raise ConfigError("preprocessor_config.json: do_pan_and_scan is true; pictures are served whole")
    return Square(size)


def tile_tokens(config: dict[str, Any]) -> int:
    return int(config.get("mm_tokens_per_image", VECTORS))


PICTURES = PictureFamily(
    ("Gemma3ForConditionalGeneration",), square_of, tile_tokens, "<start_of_image>", "<image_soft_token>",
    "<end_of_image>", joiner="", around=("\n\n", "\n\n"),
)  # fmt: skip
