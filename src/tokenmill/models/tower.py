"""What families with a tower of square tiles (`layers/vit.py`) read alike from config.json, and plan alike."""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from tokenmill.errors import ConfigError
from tokenmill.layers.vit import VitArch
from tokenmill.models.contract import VisionSpec
from tokenmill.models.family import expect_positive

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


class Sizes(TypedDict):
    """The fields of `VitArch` that every such config states under the same keys."""

    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    tile_size: int
    patch_size: int


def expect_sizes(c: Config) -> None:
    """ConfigError where a size of the tower's config is missing or not a positive whole number."""
    expect_positive(
        c, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"
    )


def sizes_of(c: Config) -> Sizes:
    return Sizes(
        hidden_size=c["hidden_size"],
        ffn_size=c["intermediate_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        tile_size=c["image_size"],
        patch_size=c["patch_size"],
    )


def run_layers(config: Config, c: Config, key: str, default: int) -> int:
    """How many layers are run: config's `key` counts from the end, -1 is all. ConfigError where there is none such."""
    run = int(c["num_hidden_layers"]) + 1 + int(config.get(key, default))
    if not 1 <= run <= c["num_hidden_layers"]:
        raise ConfigError(f"config.json: {key} is {config.get(key, default)}; it must name a layer from the end")
    return run


def expect_single_layer(config: Config, default: int) -> None:
    """ConfigError where several layers' features are asked for."""
    if not isinstance(config.get("vision_feature_layer", default), int):
        raise ConfigError("config.json: vision_feature_layer is a list; a single layer is served")


def num_params(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def tile_spec(a: VitArch, tile_tokens: int, most_tiles: int, shapes: Shapes, ahead: bool = False) -> VisionSpec:
    tokens = int(a.cls) + a.side**2
    return VisionSpec(
        piece=(a.tile_size, a.tile_size, 3),
        tile_tokens=tile_tokens,
        most_tiles=most_tiles,
        params=num_params(shapes),
        # Pixels as numbers; then residual, norm, qkv and attention's output, or the MLP's width twice.
        tile_work=3 * a.tile_size**2 * 3 + tokens * (4 * a.hidden_size + max(4 * a.hidden_size, 2 * a.ffn_size)),
        ahead=ahead,
    )


def linear(name: str, N: int, M: int, bias: bool = True) -> Shapes:
    """A linear's tensors."""
    weight: Shapes = {f"{name}.weight": (N, M)}
    return weight | ({f"{name}.bias": (N,)} if bias else {})
