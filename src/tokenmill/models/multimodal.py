"""The record of a family that joins a vision tower and a language family: one module-level `MULTIMODAL` per file.

The language model is any served family, by the nested config's architecture; its tensors lie under `prefix`. Everything
about the tower is the file's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokenmill.layers.linear import Loader
from tokenmill.models.contract import Vision, VisionSpec

Config = dict[str, Any]
# What transformers' twin of the language part is built from: its config, and its tensors by name.
LanguageTwin = tuple[Config, dict[str, Tensor]]


def with_defaults(config: Config, defaults: Config) -> Config:
    """The nested text config with a class's defaults in it; those of the ids that the outer one states give way."""
    stated = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    return {**defaults, **stated, **config["text_config"]}


@dataclass(frozen=True, slots=True)
class Multimodal:
    """Every callable takes the whole config.json; `hidden_size` is the language model's.

    `language` turns the nested config into the one that is read. `tensors` are the tower's, by name with their shapes.
    `words`: special tokens that stand for images in text. `twin` is transformers' whole model of a config, the language
    part's twin, the tower's tensors and the id that images fill: an object with `features(pieces, grids)` and
    `logits(ids, pieces, grids)`, as `contract.Vision` takes them. `template` and `processor` (preprocessor_config.json)
    go into the tiny folder. `tower`: modules that a quantized folder's config names as plain where it has one config
    for all.
    """

    name: str
    architectures: tuple[str, ...]
    prefix: str
    language: Callable[[Config], Config]
    vision: Callable[[Config], VisionSpec]
    build: Callable[[Loader, Config, int], Vision]
    tensors: Callable[[Config, int], dict[str, tuple[int, ...]]]
    twin: Callable[[Config, LanguageTwin, dict[str, Tensor], int], Any]
    tiny: Config
    words: tuple[str, ...] = field(default=())
    template: str = ""
    processor: Config = field(default_factory=dict)
    tower: tuple[str, ...] = ()
