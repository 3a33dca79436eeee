"""What a folder of LLaVA-1.5 (Hugging Face's form) says about pictures: one square tile, a vector for each patch."""

from __future__ import annotations

from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.vision.crop import Crop
from tokenmill.vision.facts import PictureFamily

# transformers' defaults of a CLIP tower.
SIDE, PATCH = 224, 32


def crop_of(config: dict[str, Any], processor: dict[str, Any]) -> Crop:
    """The tower's side. ConfigError where the image processor makes something else of a picture."""
    size = int(config["vision_config"].get("image_size", SIDE))
    for key, served in {"size": ("shortest_edge",), "crop_size": ("height", "width")}.items():
        said = processor.get(key, size)
        numbers = said if isinstance(said, dict) else dict.fromkeys(served, said)
        if any(numbers.get(name) != size for name in served):
            raise ConfigError(f"preprocessor_config.json: {key} is {said}; the tower takes {size} pixels a side")
    return Crop(size)


def tile_tokens(config: dict[str, Any]) -> int:
    vision = config["vision_config"]
    return int((int(vision.get("image_size", SIDE)) // int(vision.get("patch_size", PATCH))) ** 2)


PICTURES = PictureFamily(("LlavaForConditionalGeneration",), crop_of, tile_tokens, "", "<image>", "")
