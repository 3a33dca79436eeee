"""What a folder says about pictures, whatever its family: how they are cut, what stands for them, how many vectors.

A module of this room that holds `PICTURES` is a family's. `read_facts` finds the one of a folder's architecture.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tokenmill import find
from tokenmill.errors import ConfigError, FormatError
from tokenmill.vision.cutting import PACKAGE, Cutting
from tokenmill.vision.pool import Cut
from tokenmill.vision.prompt import ImageWords

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """`tile_tokens`: vectors that a tile becomes; pictures that have a grid become as many as it has places."""

    cutting: Cutting
    tile_tokens: int
    words: ImageWords

    def num_tokens(self, cut: Cut) -> int:
        return prod(cut.grid) if cut.grid else cut.tiles * self.tile_tokens


@dataclass(frozen=True, slots=True)
class PictureFamily:
    """`cutting` and `tile_tokens` read config.json and the image processor's own file ({} where there is none).

    start, context, end: the words around and in a picture's place; `context` is the one that is repeated. `joiner`
    stands between the parts of a message, `around` before and behind a picture once the template has written it.
    """

    architectures: tuple[str, ...]
    cutting: Callable[[Config, Config], Cutting]
    tile_tokens: Callable[[Config], int]
    start: str
    context: str
    end: str
    joiner: str = "\n"
    around: tuple[str, str] = ("", "")


def read_facts(config: Config, processor: Config, token_id: Callable[[str], int | None]) -> ImageFacts | None:
    """None for a model that takes text only. Raises ConfigError where its words are not in the vocabulary."""
    family = _family(config)
    if family is None:
        return None
    ids = {word: token_id(word) for word in (family.start, family.context, family.end) if word}
    absent = [word for word, found in ids.items() if found is None]
    context_id = ids[family.context]
    if absent or context_id is None:
        raise ConfigError(f"the tokenizer has no {', '.join(absent)}, which stand for images: is it this model's own?")
    words = ImageWords(family.start, family.context, family.end, context_id, family.joiner, family.around)
    try:
        return ImageFacts(family.cutting(config, processor), family.tile_tokens(config), words)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the folder's image sizes cannot be read: {error!r}") from error


def _family(config: Config) -> PictureFamily | None:
    wanted = set(config.get("architectures") or [])
    for name in find.names(PACKAGE):
        family: PictureFamily | None = getattr(find.load(PACKAGE, name), "PICTURES", None)
        if family is not None and wanted & set(family.architectures):
            return family
    return None


def read_processor(folder: Path) -> Config:
    """The image processor's own numbers: preprocessor_config.json, or their part of processor_config.json."""
    own = _read(folder / "preprocessor_config.json")
    nested = _read(folder / "processor_config.json").get("image_processor")
    return {**(nested if isinstance(nested, dict) else {}), **own}


def _read(path: Path) -> Config:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FormatError(f"{path.name} is not valid JSON: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} must hold a JSON object, not {type(value).__name__}")
    return value
