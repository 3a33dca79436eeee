"""InternVL 2.5 and 3 in Hugging Face's form: the authors' tower, projector and arithmetic under other names and keys.

The config is read as the authors' form would have it, and the tensors through other names, so that `internvl.py` is all
the arithmetic there is. q, k and v are three linears here, one there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.layers.linear import Loader
from tokenmill.models import internvl
from tokenmill.models.contract import VisionSpec
from tokenmill.models.family import expect_served
from tokenmill.models.hf_twin import HfTwin, read_hf_twin
from tokenmill.models.multimodal import Config, LanguageTwin, Multimodal
from tokenmill.models.qwen2 import TINY as QWEN2_TINY
from tokenmill.models.tower import expect_single_layer
from tokenmill.weights.renamed import RenamedSource, rename

PREFIX = "language_model."
# The authors' names, and those of this form.
PARTS = {
    "vision_model.embeddings.class_embedding": ("vision_tower.embeddings.cls_token",),
    "vision_model.embeddings.patch_embedding": ("vision_tower.embeddings.patch_embeddings.projection",),
    "vision_model.embeddings.position_embedding": ("vision_tower.embeddings.position_embeddings",),
    "vision_model.encoder.layers": ("vision_tower.encoder.layer",),
    "ls1": ("lambda_1",),
    "ls2": ("lambda_2",),
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.projection_layer",),
    "attn.q_norm": ("attention.q_norm",),
    "attn.k_norm": ("attention.k_norm",),
    "mlp1.0": ("multi_modal_projector.layer_norm",),
    "mlp1.1": ("multi_modal_projector.linear_1",),
    "mlp1.3": ("multi_modal_projector.linear_2",),
}
# What transformers takes where a config says nothing.
VISION_DEFAULTS: Config = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "attention_bias": False, "use_qk_norm": False, "norm_type": "layer_norm", "layer_norm_eps": 1e-6,
    "image_size": [448, 448], "patch_size": [14, 14], "num_channels": 3, "hidden_act": "gelu",
}  # fmt: skip
# transformers norms q and k with this, whatever layer_norm_eps says.
QK_EPS = 1e-6

TINY: Config = {
    "architectures": ["InternVLForConditionalGeneration"],
    "downsample_ratio": 0.5,
    "image_seq_length": 4,
    "image_token_id": 499,
    "model_type": "internvl",
    "projector_hidden_act": "gelu",
    "text_config": {**QWEN2_TINY, "max_position_embeddings": 512, "tie_word_embeddings": False, "vocab_size": 553},
    "tie_word_embeddings": False,
    "vision_config": {
        "architectures": ["InternVLVisionModel"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 48,
        "image_size": [56, 56],
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "num_attention_heads": 3,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": [14, 14],
        "projection_dropout": 0.0,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}


def language(config: Config) -> Config:
    return dict(config["text_config"])


def authors(config: Config) -> Config:
    """The same model's config.json in the authors' form. ConfigError on what that form does not have."""
    c = {**VISION_DEFAULTS, **config["vision_config"]}
    _check(config, c)
    tower = {
        **c, "image_size": side_of("image_size", c), "patch_size": side_of("patch_size", c),
        "qk_normalization": c["use_qk_norm"], "qkv_bias": c["attention_bias"],
    }  # fmt: skip
    return {
        "downsample_ratio": config.get("downsample_ratio", 0.5), "dynamic_image_size": True, "max_dynamic_patch": 12,
        "ps_version": "v2", "select_layer": config.get("vision_feature_layer", -1), "vision_config": tower,
        "llm_config": language(config),
    }  # fmt: skip


def side_of(key: str, c: Config) -> Any:
    """A square's side, of a number or of height and width."""
    value = c[key]
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ConfigError(f"config.json: vision_config.{key} is {value}; only squares are served")
    return value[0]


def _check(config: Config, c: Config) -> None:
    expect_served({
        "vision_config.model_type": (c.get("model_type", "internvl_vision"), "internvl_vision"),
        "vision_config.use_mean_pooling": (c.get("use_mean_pooling", True), True),
        "vision_config.use_absolute_position_embeddings": (c.get("use_absolute_position_embeddings", True), True),
        "vision_feature_select_strategy": (config.get("vision_feature_select_strategy", "default"), "default"),
        "projector_hidden_act": (config.get("projector_hidden_act", "gelu"), "gelu"),
    })  # fmt: skip
    expect_single_layer(config, -1)
    if c["use_qk_norm"] and float(c["layer_norm_eps"]) != QK_EPS:
        raise ConfigError(f"config.json: layer_norm_eps is {c['layer_norm_eps']}; with use_qk_norm {QK_EPS} is served")


def vision(config: Config) -> VisionSpec:
    return internvl.vision(authors(config))


def build(loader: Loader, config: Config, hidden_size: int) -> internvl.InternVLVision:
    named = replace(loader, source=RenamedSource(loader.source, PARTS))
    return internvl.InternVLVision(named, authors(config), hidden_size)


def tensors(config: Config, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of tower and projector as a published folder holds it."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in internvl.tensors(authors(config), hidden_size).items():
        owns = rename(name, PARTS)
        found |= {own: (shape[0] // len(owns), *shape[1:]) for own in owns}
    return found


def build_twin(config: Config, text: LanguageTwin, tower: dict[str, Tensor], context_id: int) -> HfTwin:
    inner, decoder = text
    whole = {**config, "text_config": inner, "image_token_id": context_id, "image_seq_length": 1}
    named = {PREFIX + name: value for name, value in decoder.items()}
    return HfTwin(read_hf_twin(whole, {**named, **tower}), internvl.MEAN, internvl.STD)


MULTIMODAL = Multimodal(
    name="internvl_hf",
    architectures=("InternVLForConditionalGeneration",),
    prefix=PREFIX,
    language=language,
    vision=vision,
    build=build,
    tensors=tensors,
    twin=build_twin,
    tiny=TINY,
    words=internvl.MULTIMODAL.words,
)
