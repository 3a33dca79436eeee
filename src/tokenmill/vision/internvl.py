"""What a folder of InternVL (chat form) says about pictures: tiles, vectors per tile, words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.vision.prompt import ImageWords
from tokenmill.vision.tiles import Tiling

START, CONTEXT, END = "<img>", "<IMG_CONTEXT>", "</img>"
ARCHITECTURE = "InternVLChatModel"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """`tile_tokens`: vectors that a tile becomes."""

    tiling: Tiling
    tile_tokens: int
    words: ImageWords


def read_facts(config: dict[str, Any], token_id: Callable[[str], int | None]) -> ImageFacts | None:
    """None for a model that takes text only. Raises ConfigError where its words are not in the vocabulary."""
    if ARCHITECTURE not in (config.get("architectures") or []):
        return None
    ids = {word: token_id(word) for word in (START, CONTEXT, END)}
    absent = [word for word, found in ids.items() if found is None]
    context_id = ids[CONTEXT]
    if absent or context_id is None:
        raise ConfigError(f"the tokenizer has no {', '.join(absent)}, which stand for images: is it this model's own?")
    return ImageFacts(tiling_of(config), tile_tokens(config), ImageWords(START, CONTEXT, END, context_id))


def tiling_of(config: dict[str, Any]) -> Tiling:
    """A config without `dynamic_image_size` shows every picture as one tile."""
    size = int(config.get("force_image_size") or config["vision_config"]["image_size"])
    if not config.get("dynamic_image_size", False):
        return Tiling(size, 1, 1, False)
    least, most = int(config.get("min_dynamic_patch", 1)), int(config.get("max_dynamic_patch", 6))
    return Tiling(size, least, most, bool(config.get("use_thumbnail", False)))


def tile_tokens(config: dict[str, Any]) -> int:
    vision = config["vision_config"]
    side = int(config.get("force_image_size") or vision["image_size"]) // int(vision["patch_size"])
    return int(side * float(config.get("downsample_ratio", 0.5))) ** 2
