"""LLaVA-1.5 in Hugging Face's form: CLIP's tower up to the layer before its last, a projector, a language family.

A picture is one tile; every patch becomes a vector and CLS none. Published configs leave out what is the default of a
class; both names of the tower's tensors are read, transformers before 5 wrote `vision_model.` within.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.errors import ConfigError
from tokenmill.layers.linear import Loader
from tokenmill.layers.vit import Vit, VitArch, VitNames, whole_linear
from tokenmill.models.contract import VisionSpec
from tokenmill.models.hf_twin import HfTwin, read_hf_twin
from tokenmill.models.llama import LLAMA_TINY
from tokenmill.models.multimodal import Config, LanguageTwin, Multimodal, with_defaults
from tokenmill.models.pixels import PixelScale
from tokenmill.models.tower import expect_single_layer, expect_sizes, run_layers, sizes_of, tile_spec
from tokenmill.weights.contract import Source
from tokenmill.weights.renamed import RenamedSource

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PREFIX, TOWER = "language_model.", "vision_tower.vision_model"
NAMES = VitNames(
    cls=f"{TOWER}.embeddings.class_embedding",
    patch=f"{TOWER}.embeddings.patch_embedding",
    position=f"{TOWER}.embeddings.position_embedding.weight",
    layer=TOWER + ".encoder.layers.{}.",
    first_norm=f"{TOWER}.pre_layrnorm",
)
# The parts of a block as `layers/vit.py` calls them, and as CLIP does.
PARTS = {
    "norm1": ("layer_norm1",),
    "norm2": ("layer_norm2",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
}
# What transformers takes where a config says nothing.
TEXT_DEFAULTS: Config = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION_DEFAULTS: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip

TINY: Config = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 497,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "text_config": {**LLAMA_TINY, "max_position_embeddings": 512, "vocab_size": 553},
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 48,
        "image_size": 56,
        "intermediate_size": 96,
        "model_type": "clip_vision_model",
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "patch_size": 14,
        "projection_dim": 32,
        "vocab_size": 553,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def language(config: Config) -> Config:
    """The nested config, whole: a Llama's unless it names another family."""
    plain = config["text_config"].get("model_type", "llama") == "llama"
    return with_defaults(config, TEXT_DEFAULTS if plain else {})


def vit_arch(config: Config) -> VitArch:
    c = {**VISION_DEFAULTS, **config["vision_config"]}
    expect_sizes(c)
    _check(config, c)
    return VitArch(
        **sizes_of(c),
        norm="layer_norm",
        eps=float(c["layer_norm_eps"]),
        qk_norm=False,
        qkv_bias=True,
        run_layers=run_layers(config, c, "vision_feature_layer", -2),
        activation=c["hidden_act"],
        layer_scale=False,
        patch_bias=False,
        first_norm=True,
    )


def _check(config: Config, c: Config) -> None:
    """ConfigError on what is not served."""
    wanted = {
        "vision_config.model_type": (c.get("model_type", "clip_vision_model"), ("clip_vision_model",)),
        "vision_config.hidden_act": (c["hidden_act"], ("quick_gelu", "gelu")),
        "vision_config.num_channels": (c["num_channels"], (3,)),
        "vision_feature_select_strategy": (config.get("vision_feature_select_strategy", "default"), ("default",)),
        "projector_hidden_act": (config.get("projector_hidden_act", "gelu"), ("gelu",)),
        "multimodal_projector_bias": (config.get("multimodal_projector_bias", True), (True,)),
    }
    for key, (value, served) in wanted.items():
        if value not in served:
            raise ConfigError(f"config.json: {key} is {value!r}; served is {' or '.join(map(repr, served))}")
    expect_single_layer(config, -2)
    if c["image_size"] % c["patch_size"] or c["hidden_size"] % c["num_attention_heads"]:
        raise ConfigError("config.json: image_size must be whole patches, the tower's hidden_size whole heads")


def vision(config: Config) -> VisionSpec:
    a = vit_arch(config)
    return tile_spec(a, a.side**2, 1, tensors(config, int(language(config)["hidden_size"])))


class LlavaVision:
    """`models.contract.Vision`."""

    def __init__(self, loader: Loader, config: Config, hidden_size: int):
        self.spec = vision(config)
        source = RenamedSource(loader.source, {**tower_parts(loader.source), **PARTS})
        self.vit = Vit(replace(loader, source=source), vit_arch(config), NAMES)
        self.fc1 = whole_linear(loader, "multi_modal_projector.linear_1", hidden_size, self.vit.arch.hidden_size)
        self.fc2 = whole_linear(loader, "multi_modal_projector.linear_2", hidden_size, hidden_size)
        self.scale = PixelScale(MEAN, STD, loader.device)

    @torch.inference_mode()
    def __call__(self, pieces: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        x_NSD = self.vit(self.scale(pieces).to(self.vit.dtype))
        return self.fc2(functional.gelu(self.fc1(x_NSD[:, 1:].flatten(0, 1))))


def tower_parts(source: Source) -> dict[str, tuple[str, ...]]:
    """How this folder calls the tower."""
    return {} if source.has(NAMES.cls) else {TOWER: ("vision_tower",)}


def tensors(config: Config, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of tower and projector as a published folder holds it."""
    a = vit_arch(config)
    D = a.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        NAMES.cls: (D,),
        f"{NAMES.patch}.weight": (D, 3, a.patch_size, a.patch_size),
        NAMES.position: (1 + a.side**2, D),
        **named_pair(NAMES.first_norm, (D,)),
        **named_pair(f"{TOWER}.post_layernorm", (D,)),
        **named_pair("multi_modal_projector.linear_1", (hidden_size, D)),
        **named_pair("multi_modal_projector.linear_2", (hidden_size, hidden_size)),
    }
    for index in range(a.num_layers):
        prefix = NAMES.layer.format(index)
        for name, shape in layer_shapes(a).items():
            shapes |= named_pair(prefix + name, shape)
    return shapes


def layer_shapes(a: VitArch) -> dict[str, tuple[int, ...]]:
    D, F = a.hidden_size, a.ffn_size
    square = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    return {
        "layer_norm1": (D,), "layer_norm2": (D,), **dict.fromkeys(square, (D, D)), "mlp.fc1": (F, D), "mlp.fc2": (D, F)
    }  # fmt: skip


def named_pair(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def build_twin(config: Config, text: LanguageTwin, tower: dict[str, Tensor], context_id: int) -> HfTwin:
    inner, decoder = text
    whole = {**config, "text_config": inner, "image_token_index": context_id}
    named = {PREFIX + name: value for name, value in decoder.items()}
    return HfTwin(read_hf_twin(whole, {**named, **tower}), MEAN, STD)


MULTIMODAL = Multimodal(
    name="llava",
    architectures=("LlavaForConditionalGeneration",),
    prefix=PREFIX,
    language=language,
    vision=vision,
    build=LlavaVision,
    tensors=tensors,
    twin=build_twin,
    tiny=TINY,
    words=("<image>",),
)
