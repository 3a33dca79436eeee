"""What a user gives a pipeline, sorted: one prompt or several; text, text with images, messages or token ids."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from tokenmill.api.configs import GenerationConfig
from tokenmill.api.load_image import load_image
from tokenmill.errors import ConfigError
from tokenmill.types import Message

Prompt = str | tuple[int, ...] | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Prompts:
    """`single`: the user gave one prompt and gets one answer, not a list."""

    items: tuple[Prompt, ...]
    single: bool


def sort_prompts(given: Any) -> Prompts:
    """Raises ConfigError on what is no prompt."""
    if isinstance(given, str | tuple) or _is_ids(given) or _is_messages(given):
        return Prompts((_prompt(given),), True)
    if not isinstance(given, list):
        raise ConfigError(f"prompts is a {type(given).__name__}; give a text, a list of texts, messages or token ids")
    return Prompts(tuple(_prompt(item) for item in given), False)


def per_prompt(config: GenerationConfig | list[GenerationConfig], count: int) -> list[GenerationConfig]:
    """A configuration for each prompt. Raises ConfigError where a list of them has another length."""
    if not isinstance(config, list):
        return [config] * count
    if len(config) != count:
        raise ConfigError(f"there are {count} prompts and {len(config)} gen_configs; give one, or one for each")
    return config


def _prompt(item: Any) -> Prompt:
    if isinstance(item, str):
        return item
    if _is_ids(item) or _is_messages(item):
        return tuple(item)
    if isinstance(item, tuple) and len(item) == 2:
        return (_with_images(*item),)
    raise ConfigError(
        f"{str(item)[:60]!r} is no prompt; give a text, (text, images), a list of messages, or a list of token ids"
    )


def _with_images(text: Any, images: Any) -> Message:
    """LMDeploy's pair of a text and an image or several, in either order, as one message: images first."""
    if not isinstance(text, str):
        text, images = images, text
    if not isinstance(text, str):
        raise ConfigError(f"a pair of {type(text).__name__} and {type(images).__name__} has no text; give both")
    several = images if isinstance(images, list | tuple) else [images]
    return {"role": "user", "content": [*map(_image, several), {"type": "text", "text": text}]}


def _image(image: Any) -> Message:
    """URLs are fetched by the engine under its own rules; this program's files and images are handed over."""
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        return {"type": "image_url", "image_url": {"url": image}}
    if not isinstance(image, str) and not hasattr(image, "convert"):
        raise ConfigError(f"an image is a {type(image).__name__}; give a path, a URL or a PIL image")
    data = io.BytesIO()
    load_image(image).save(data, "PNG")
    return {"type": "image", "image": data.getvalue()}


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
