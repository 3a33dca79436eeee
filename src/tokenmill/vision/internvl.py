"""What a folder of InternVL (chat form) says about pictures: tiles, vectors per tile, words."""

from __future__ import annotations

from typing import Any

from tokenmill.vision.facts import PictureFamily
from tokenmill.vision.tiles import Tiling


def tiling_of(config: dict[str, Any], processor: dict[str, Any]) -> Tiling:
    """A config without `dynamic_image_size` shows every picture as one tile. The processor's file is not read."""
    size = int(config.get("force_image_size") or config["vision_config"]["image_size"])
    if not config.get("dynamic_image_size", False):
        return Tiling(size, 1, 1, False)
    least, most = int(config.get("min_dynamic_patch", 1)), int(config.get("max_dynamic_patch", 6))
    return Tiling(size, least, most, bool(config.get("use_thumbnail", False)))


def tile_tokens(config: dict[str, Any]) -> int:
    vision = config["vision_config"]
    side = int(config.get("force_image_size") or vision["image_size"]) // int(vision["patch_size"])
    return int(side * float(config.get("downsample_ratio", 0.5))) ** 2


PICTURES = PictureFamily(("InternVLChatModel",), tiling_of, tile_tokens, "<img>", "<IMG_CONTEXT>", "</img>")
