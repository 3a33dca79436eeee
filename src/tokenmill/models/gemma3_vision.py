"""Gemma 3 with pictures (4B, 12B, 27B): SigLIP's tower, pooled to 256 vectors, in front of Gemma 3's language model.

The vectors of a picture see each other whichever comes first, in every layer. Published configs leave out what is the
default of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.errors import ConfigError
from tokenmill.layers.linear import Linear, Loader, Part
from tokenmill.layers.vit import TileNorm, Vit, VitArch, VitNames, shaped
from tokenmill.models.contract import VisionSpec
from tokenmill.models.family import expect_served
from tokenmill.models.gemma import NormsFromOne
from tokenmill.models.gemma3 import TINY as GEMMA3_TINY
from tokenmill.models.hf_twin import HfTwin, read_hf_twin
from tokenmill.models.llava import PARTS, layer_shapes, named_pair
from tokenmill.models.multimodal import Config, LanguageTwin, Multimodal, with_defaults
from tokenmill.models.pixels import PixelScale
from tokenmill.models.tower import expect_sizes, sizes_of, tile_spec
from tokenmill.weights.classes import Dense
from tokenmill.weights.renamed import RenamedSource

MEAN = STD = (0.5, 0.5, 0.5)
PREFIX, TOWER = "language_model.", "vision_tower.vision_model"
NORM, PROJECTION = "multi_modal_projector.mm_soft_emb_norm", "multi_modal_projector.mm_input_projection_weight"
NAMES = VitNames(
    cls="",
    patch=f"{TOWER}.embeddings.patch_embedding",
    position=f"{TOWER}.embeddings.position_embedding.weight",
    layer=TOWER + ".encoder.layers.{}.",
    last_norm=f"{TOWER}.post_layernorm",
)
# What transformers takes where a config says nothing.
TEXT_DEFAULTS: Config = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2304,
    "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4,
}  # fmt: skip
VISION_DEFAULTS: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip

TINY: Config = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 497,
    "eoi_token_index": 498,
    "image_token_index": 499,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 16,
    "model_type": "gemma3",
    "text_config": {**GEMMA3_TINY, "max_position_embeddings": 512, "vocab_size": 553},
    "vision_config": {
        "hidden_size": 48,
        "image_size": 56,
        "intermediate_size": 96,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "patch_size": 7,
        "vision_use_head": False,
    },
}


def language(config: Config) -> Config:
    return with_defaults(config, TEXT_DEFAULTS)


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
        run_layers=c["num_hidden_layers"],
        activation="gelu_tanh",
        layer_scale=False,
        cls=False,
        last_norm=True,
    )


def _check(config: Config, c: Config) -> None:
    """ConfigError on what is not served."""
    expect_served({
        "vision_config.model_type": (c.get("model_type", "siglip_vision_model"), "siglip_vision_model"),
        "vision_config.hidden_act": (c["hidden_act"], "gelu_pytorch_tanh"),
        "vision_config.num_channels": (c["num_channels"], 3),
    })  # fmt: skip
    if c["image_size"] % c["patch_size"] or c["hidden_size"] % c["num_attention_heads"]:
        raise ConfigError("config.json: image_size must be whole patches, the tower's hidden_size whole heads")
    vectors, patches = vectors_of(config), c["image_size"] // c["patch_size"]
    if isqrt(vectors) ** 2 != vectors or patches % isqrt(vectors):
        raise ConfigError(f"config.json: mm_tokens_per_image is {vectors}; no square of it divides {patches} patches")
    if language(config).get("use_bidirectional_attention"):
        raise ConfigError("config.json: use_bidirectional_attention is true; only causal text is served")


def vectors_of(config: Config) -> int:
    return int(config.get("mm_tokens_per_image", 256))


def vision(config: Config) -> VisionSpec:
    a = vit_arch(config)
    shapes = tensors(config, int(language(config)["hidden_size"]))
    return tile_spec(a, vectors_of(config), 1, shapes, ahead=True)


class Gemma3Vision:
    """`models.contract.Vision`."""

    def __init__(self, loader: Loader, config: Config, hidden_size: int):
        self.spec = vision(config)
        a = vit_arch(config)
        self.vit = Vit(replace(loader, source=RenamedSource(loader.source, PARTS)), a, NAMES)
        around_0 = replace(loader, source=NormsFromOne(loader.source))
        self.norm = TileNorm(around_0, NORM, a.hidden_size, "rms_norm", a.eps)
        weight = shaped(loader, PROJECTION, (a.hidden_size, hidden_size)).T.contiguous()
        self.projection = Linear((Part(Dense(weight), None, 1),), "replicated", loader)
        self.pool = a.side // isqrt(self.spec.tile_tokens)
        self.scale = PixelScale(MEAN, STD, loader.device)

    @torch.inference_mode()
    def __call__(self, pieces: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        x_NSD = self.vit(self.scale(pieces).to(self.vit.dtype))
        side, D = self.vit.arch.side, x_NSD.shape[-1]
        square = x_NSD.view(-1, side, side, D).permute(0, 3, 1, 2)
        pooled_ND = functional.avg_pool2d(square, self.pool).permute(0, 2, 3, 1).reshape(-1, D)
        return self.projection(self.norm(pooled_ND))


def tensors(config: Config, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of tower and projector as a published folder holds it."""
    a = vit_arch(config)
    D = a.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        **named_pair(NAMES.patch, (D, 3, a.patch_size, a.patch_size)),
        NAMES.position: (a.side**2, D),
        **named_pair(NAMES.last_norm, (D,)),
        f"{NORM}.weight": (D,),
        PROJECTION: (D, hidden_size),
    }
    for index in range(a.num_layers):
        prefix = NAMES.layer.format(index)
        for name, shape in layer_shapes(a).items():
            shapes |= named_pair(prefix + name, shape)
    return shapes


class Twin(HfTwin):
    """transformers is told which tokens are a picture's, so that they see each other."""

    def __init__(self, model: object, context_id: int):
        super().__init__(model, MEAN, STD)
        self.context_id = context_id

    def logits(self, ids_T: Tensor, tiles: Tensor, grids: Sequence[tuple[int, ...]] = ()) -> Tensor:
        kinds_1T = (ids_T == self.context_id).long()[None]
        found = self.model(input_ids=ids_T[None], pixel_values=self.pixels(tiles), token_type_ids=kinds_1T)
        logits: Tensor = found.logits[0].float()
        return logits


def build_twin(config: Config, text: LanguageTwin, tower: dict[str, Tensor], context_id: int) -> HfTwin:
    inner, decoder = text
    whole = {**config, "text_config": inner, "image_token_index": context_id}
    named = {PREFIX + name: value for name, value in decoder.items()}
    return Twin(read_hf_twin(whole, {**named, **tower}), context_id)


MULTIMODAL = Multimodal(
    name="gemma3_vision",
    architectures=("Gemma3ForConditionalGeneration",),
    prefix=PREFIX,
    language=language,
    vision=vision,
    build=Gemma3Vision,
    tensors=tensors,
    twin=build_twin,
    tiny=TINY,
    words=("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
)
