"""InternVL2, 2.5 and 3 in the authors' form: InternViT (300M or 6B), pixel shuffle, a projector, a language family.

The 300M tower has LayerNorm and biases on qkv; the 6B one RMSNorm, no such biases, and q and k normed over all heads at
once. Both say `intern_vit_6b` in their config, so only its keys are read. A tile becomes (side / 2)^2 vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.errors import ConfigError
from tokenmill.layers.linear import Loader
from tokenmill.layers.vit import TileNorm, Vit, VitArch, VitNames, shuffle_pixels, whole_linear
from tokenmill.models.contract import VisionSpec
from tokenmill.models.family import expect_served
from tokenmill.models.internlm2 import TINY as INTERNLM2_TINY
from tokenmill.models.internvl_twin import build_twin
from tokenmill.models.multimodal import Config, Multimodal
from tokenmill.models.pixels import PixelScale
from tokenmill.models.tower import expect_sizes, linear, run_layers, sizes_of, tile_spec

NAMES = VitNames(
    cls="vision_model.embeddings.class_embedding",
    patch="vision_model.embeddings.patch_embedding",
    position="vision_model.embeddings.position_embedding",
    layer="vision_model.encoder.layers.{}.",
)
# The authors' code scales by ImageNet's numbers, whatever preprocessor_config.json says.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORM_EPS = 1e-5

TINY: Config = {
    "architectures": ["InternVLChatModel"],
    "auto_map": {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    },
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 56,
    "llm_config": {**INTERNLM2_TINY, "max_position_embeddings": 512, "vocab_size": 553},
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "model_type": "internvl_chat",
    "pad2square": False,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internlm2-chat",
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "use_thumbnail": True,
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 48,
        "image_size": 56,
        "initializer_factor": 0.1,
        "intermediate_size": 96,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "norm_type": "rms_norm",
        "num_attention_heads": 3,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": 14,
        "qk_normalization": True,
        "qkv_bias": False,
    },
}


def language(config: Config) -> Config:
    """Every size has its own head, whatever the language model's config says."""
    return {**config["llm_config"], "tie_word_embeddings": False}


def vit_arch(config: Config) -> VitArch:
    c = config["vision_config"]
    expect_sizes(c)
    _check(config, c)
    return VitArch(
        **sizes_of(c),
        norm=c.get("norm_type", "rms_norm"),
        eps=float(c.get("layer_norm_eps", 1e-6)),
        qk_norm=bool(c.get("qk_normalization", True)),
        qkv_bias=bool(c.get("qkv_bias", False)),
        run_layers=run_layers(config, c, "select_layer", -1),
    )


def _check(config: Config, c: Config) -> None:
    """ConfigError on what is not served."""
    expect_served({
        "ps_version": (config.get("ps_version", "v1"), "v2"),
        "downsample_ratio": (config.get("downsample_ratio", 0.5), 0.5),
        "force_image_size": (config.get("force_image_size") or c["image_size"], c["image_size"]),
        "vision_config.hidden_act": (c.get("hidden_act", "gelu"), "gelu"),
        "vision_config.num_channels": (c.get("num_channels", 3), 3),
    })  # fmt: skip
    if c.get("norm_type", "rms_norm") not in ("rms_norm", "layer_norm"):
        raise ConfigError(f"config.json: norm_type is {c['norm_type']!r}; it must be rms_norm or layer_norm")
    if c["image_size"] % (2 * c["patch_size"]):
        raise ConfigError(f"config.json: image_size {c['image_size']} is no multiple of two patches")
    if c["hidden_size"] % c["num_attention_heads"]:
        raise ConfigError("config.json: the vision tower's hidden_size is no multiple of num_attention_heads")


def vision(config: Config) -> VisionSpec:
    a = vit_arch(config)
    most = int(config.get("max_dynamic_patch", 6)) if config.get("dynamic_image_size") else 1
    hidden = int(config["llm_config"]["hidden_size"])
    return tile_spec(a, a.side**2 // 4, most + (1 if most > 1 else 0), tensors(config, hidden))


class InternVLVision:
    """`models.contract.Vision`."""

    def __init__(self, loader: Loader, config: Config, hidden_size: int):
        self.spec = vision(config)
        self.vit = Vit(loader, vit_arch(config), NAMES)
        width = 4 * self.vit.arch.hidden_size
        self.norm = TileNorm(loader, "mlp1.0", width, "layer_norm", NORM_EPS)
        self.fc1 = whole_linear(loader, "mlp1.1", hidden_size, width)
        self.fc2 = whole_linear(loader, "mlp1.3", hidden_size, hidden_size)
        self.scale = PixelScale(MEAN, STD, loader.device)

    @torch.inference_mode()
    def __call__(self, pieces: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        x_NSD = self.vit(self.scale(pieces).to(self.vit.dtype))
        y = self.norm(shuffle_pixels(x_NSD[:, 1:], self.vit.arch.side))
        return self.fc2(functional.gelu(self.fc1(y.flatten(0, 1))))


def tensors(config: Config, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of tower and projector as a real folder holds it."""
    a = vit_arch(config)
    D, width = a.hidden_size, 4 * a.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        NAMES.cls: (1, 1, D),
        f"{NAMES.patch}.weight": (D, 3, a.patch_size, a.patch_size),
        f"{NAMES.patch}.bias": (D,),
        NAMES.position: (1, 1 + a.side**2, D),
        "mlp1.0.weight": (width,),
        "mlp1.0.bias": (width,),
    }
    shapes |= linear("mlp1.1", hidden_size, width) | linear("mlp1.3", hidden_size, hidden_size)
    for index in range(a.num_layers):
        prefix = NAMES.layer.format(index)
        shapes |= {f"{prefix}{name}": shape for name, shape in _layer_tensors(a).items()}
    return shapes


def _layer_tensors(a: VitArch) -> dict[str, tuple[int, ...]]:
    D, F = a.hidden_size, a.ffn_size
    shapes: dict[str, tuple[int, ...]] = {"ls1": (D,), "ls2": (D,)}
    shapes |= linear("attn.qkv", 3 * D, D, a.qkv_bias) | linear("attn.proj", D, D)
    shapes |= linear("mlp.fc1", F, D) | linear("mlp.fc2", D, F)
    norms = ["norm1", "norm2"]
    shapes |= {f"{name}.weight": (D,) for name in [*norms, *(("attn.q_norm", "attn.k_norm") if a.qk_norm else ())]}
    if a.norm == "layer_norm":
        shapes |= {f"{name}.bias": (D,) for name in norms}
    return shapes


MULTIMODAL = Multimodal(
    name="internvl",
    architectures=("InternVLChatModel",),
    prefix="language_model.",
    language=language,
    vision=vision,
    build=InternVLVision,
    tensors=tensors,
    twin=build_twin,
    tiny=TINY,
    words=("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)
