"""Qwen2-VL: as Qwen2.5-VL, with LayerNorm and quick GELU in the tower, in which every patch sees its whole picture."""

from __future__ import annotations

from dataclasses import replace

from tokenmill.layers.linear import Loader
from tokenmill.layers.patch_vit import PatchVitArch
from tokenmill.models import qwen2_5_vl as later
from tokenmill.models.contract import VisionSpec
from tokenmill.models.family import expect_positive
from tokenmill.models.multimodal import Config
from tokenmill.models.tower import Shapes, linear, num_params

TINY: Config = {
    **later.LANGUAGE_TINY,
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "vision_config": {
        "depth": 3,
        "embed_dim": 48,
        "hidden_act": "quick_gelu",
        "hidden_size": 128,
        "in_chans": 3,
        "mlp_ratio": 4,
        "num_heads": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
}


def vit_arch(config: Config) -> PatchVitArch:
    c = config["vision_config"]
    expect_positive(c, "embed_dim", "depth", "num_heads", "patch_size")
    later.check_vision(c, {"hidden_act": "quick_gelu"})
    return PatchVitArch(
        hidden_size=c["embed_dim"],
        ffn_size=int(c["embed_dim"] * c.get("mlp_ratio", 4)),
        num_layers=c["depth"],
        num_heads=c["num_heads"],
        patch_size=c["patch_size"],
        frames=int(c.get("temporal_patch_size", 2)),
        norm="layer_norm",
        eps=later.NORM_EPS,
        gated=False,
    )


def vision(config: Config) -> VisionSpec:
    shapes = tensors(config, int(later.language(config)["hidden_size"]))
    return later.spec_of(vit_arch(config), num_params(shapes))


def build(loader: Loader, config: Config, hidden_size: int) -> later.QwenVision:
    return later.QwenVision(loader, vit_arch(config), vision(config), hidden_size)


def tensors(config: Config, hidden_size: int) -> Shapes:
    """Every tensor of tower and merger as a real folder holds it."""
    return later.tower_tensors(vit_arch(config), hidden_size, _layer)


def _layer(a: PatchVitArch) -> Shapes:
    norms = {f"{name}.{part}": (a.hidden_size,) for name in ("norm1", "norm2") for part in ("weight", "bias")}
    ups = linear("mlp.fc1", a.ffn_size, a.hidden_size)
    return {**norms, **ups, **linear("mlp.fc2", a.hidden_size, a.ffn_size)}


MULTIMODAL = replace(
    later.MULTIMODAL,
    name="qwen2_vl",
    architectures=("Qwen2VLForConditionalGeneration",),
    vision=vision,
    build=build,
    tensors=tensors,
    tiny=TINY,
)
