"""What a user gives a pipeline, sorted: one prompt or several; text, messages, token ids, or text with images. Pure.

Images are Pillow's, or where one is: a URL, a data URL, a path. They stand in front of the text.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from tokenmill.api.configs import GenerationConfig
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
    if isinstance(item, tuple):
        return (with_images(item),)
    if _is_ids(item) or _is_messages(item):
        return tuple(item)
    raise ConfigError(
        f"{str(item)[:60]!r} is no prompt; give a text, (text, images), a list of messages, or a list of token ids"
    )


def with_images(pair: tuple[Any, ...]) -> Message:
    """A user message of (text, image), (text, [images]) or either turned round. Raises ConfigError on anything else."""
    if len(pair) != 2:
        raise ConfigError(f"a prompt with images is (text, image) or (text, [images]); this one has {len(pair)} parts")
    text, images = pair if isinstance(pair[0], str) and not _is_image(pair[0], pair[1]) else pair[::-1]
    each = list(images) if isinstance(images, list | tuple) else [images]
    if not isinstance(text, str) or not all(isinstance(one, str) or _is_pillow(one) for one in each):
        raise ConfigError("a prompt with images is (text, image) or (text, [images]); images are Pillow's, or URLs")
    parts = [{"type": "image", "image": _png(one) if _is_pillow(one) else one} for one in each]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _is_image(first: str, second: Any) -> bool:
    """Of two texts the one that is a URL is the image; the first where neither is told apart is the text."""
    return isinstance(second, str) and first.startswith(("data:image/", "http://", "https://", "file://"))


def _is_pillow(value: Any) -> bool:
    return callable(getattr(value, "save", None)) and hasattr(value, "mode")


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    (image if image.mode in ("RGB", "RGBA", "L", "P") else image.convert("RGB")).save(out, "PNG")
    return out.getvalue()


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
