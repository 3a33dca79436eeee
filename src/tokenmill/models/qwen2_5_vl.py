"""Qwen2.5-VL: a tower with windows over whole pictures, and Qwen2.5 whose tokens are turned by row and column.

Published folders keep the language model's keys at the top of config.json; transformers 5 writes them nested. Both are
read. Tensors are `visual.*` beside the language model's own names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.errors import ConfigError
from tokenmill.layers.linear import Loader
from tokenmill.layers.patch_vit import MERGE, Merger, PatchVit, PatchVitArch
from tokenmill.models.contract import VisionSpec
from tokenmill.models.family import expect_positive, expect_served
from tokenmill.models.multimodal import Config, Multimodal
from tokenmill.models.qwen2 import TINY as QWEN2_TINY
from tokenmill.models.qwen_vl_twin import build_twin
from tokenmill.models.tower import Shapes, linear, num_params
from tokenmill.vision.tiles import scale_table

TOWER = "visual."
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NORM_EPS = 1e-6
# Vectors are kept in pages of so many; a picture of the largest size that published processors make fills the latter.
PAGE_TOKENS, MOST_TOKENS = 64, 16384
WORDS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
PARTS = ("vision_config", "text_config")

TEMPLATE = (
    "{% set seen = namespace(pictures=0) %}{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "{% set seen.pictures = seen.pictures + 1 %}"
    "{% if add_vision_id %}Picture {{ seen.pictures }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROCESSOR: Config = {
    "image_mean": list(MEAN), "image_std": list(STD), "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136, "max_pixels": 62720, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip

LANGUAGE_TINY: Config = {
    **QWEN2_TINY,
    "max_position_embeddings": 512,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "vocab_size": 553,
    # As the tiny tokenizer numbers WORDS.
    "vision_start_token_id": 497,
    "vision_end_token_id": 498,
    "vision_token_id": 499,
    "image_token_id": 500,
    "video_token_id": 501,
}
TINY: Config = {
    **LANGUAGE_TINY,
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "vision_config": {
        "depth": 3,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
        "hidden_size": 48,
        "in_chans": 3,
        "intermediate_size": 96,
        "num_heads": 3,
        "out_hidden_size": 128,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    },
}


def language(config: Config) -> Config:
    """The language model alone: Qwen2 under its own names."""
    nested = config.get("text_config")
    inner = dict(nested) if isinstance(nested, dict) else {k: v for k, v in config.items() if k not in PARTS}
    rope = {**(inner.get("rope_scaling") or {}), **(inner.get("rope_parameters") or {})}
    if not rope.get("mrope_section"):
        raise ConfigError("config.json: rope_scaling has no mrope_section, which turns images by row and column")
    return {**inner, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def vit_arch(config: Config) -> PatchVitArch:
    c = config["vision_config"]
    expect_positive(c, "hidden_size", "intermediate_size", "depth", "num_heads", "patch_size", "window_size")
    check_vision(c, {"hidden_act": "silu"})
    step = c["patch_size"] * MERGE
    if c["window_size"] % step:
        raise ConfigError(f"config.json: window_size is {c['window_size']}; it must be a multiple of {step}")
    return PatchVitArch(
        hidden_size=c["hidden_size"],
        ffn_size=c["intermediate_size"],
        num_layers=c["depth"],
        num_heads=c["num_heads"],
        patch_size=c["patch_size"],
        frames=int(c.get("temporal_patch_size", 2)),
        norm="rms_norm",
        eps=NORM_EPS,
        gated=True,
        window=c["window_size"] // step,
        full_layers=tuple(int(index) for index in c["fullatt_block_indexes"]),
    )


def check_vision(c: Config, served: dict[str, Any]) -> None:
    """ConfigError on a tower of another kind."""
    wanted = {**served, "spatial_merge_size": MERGE, "in_channels": 3, "in_chans": 3}
    expect_served({f"vision_config.{key}": (c.get(key, value), value) for key, value in wanted.items()})
    width, heads = c.get("embed_dim") or c["hidden_size"], c["num_heads"]
    if width % (4 * heads):
        raise ConfigError(f"config.json: the vision tower's width {width} is no multiple of 4 * {heads} heads")


def spec_of(a: PatchVitArch, params: int) -> VisionSpec:
    patches = PAGE_TOKENS * MERGE**2
    widest = max(4 * a.hidden_size, (3 if a.gated else 2) * a.ffn_size)
    return VisionSpec(
        piece=(3, a.patch_size, a.patch_size),
        tile_tokens=PAGE_TOKENS,
        most_tiles=MOST_TOKENS // PAGE_TOKENS,
        params=params,
        # Pixels as numbers; then residual, norm, qkv and attention's output, or the MLP's width.
        tile_work=patches * (3 * 3 * a.patch_size**2 + 4 * a.hidden_size + widest),
        tile_pieces=patches,
        grids=True,
    )


def vision(config: Config) -> VisionSpec:
    return spec_of(vit_arch(config), num_params(tensors(config, int(language(config)["hidden_size"]))))


class QwenVision:
    """`models.contract.Vision`."""

    def __init__(self, loader: Loader, a: PatchVitArch, spec: VisionSpec, hidden_size: int):
        self.spec = spec
        self.vit = PatchVit(loader, a, TOWER)
        self.merger = Merger(loader, a, f"{TOWER}merger.", hidden_size)
        # A value for each channel and byte, laid out so that byte + 256 * channel finds it.
        self.table = torch.from_numpy(scale_table(MEAN, STD)).reshape(-1).to(loader.device)
        self.shifts = torch.tensor([0, 256, 512], dtype=torch.int32, device=loader.device).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, pieces: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        pixels = functional.embedding(pieces.to(torch.int32) + self.shifts, self.table[:, None])
        return self.merger(self.vit(pixels.flatten(1).to(self.vit.dtype), grids))


def build(loader: Loader, config: Config, hidden_size: int) -> QwenVision:
    return QwenVision(loader, vit_arch(config), vision(config), hidden_size)


def tensors(config: Config, hidden_size: int) -> Shapes:
    """Every tensor of tower and merger as a real folder holds it."""
    return tower_tensors(vit_arch(config), hidden_size, _layer)


def _layer(a: PatchVitArch) -> Shapes:
    shapes: Shapes = {"norm1.weight": (a.hidden_size,), "norm2.weight": (a.hidden_size,)}
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        shapes |= linear(name, a.ffn_size, a.hidden_size)
    return shapes | linear("mlp.down_proj", a.hidden_size, a.ffn_size)


def tower_tensors(a: PatchVitArch, out_size: int, layer: Callable[[PatchVitArch], Shapes]) -> Shapes:
    D, width = a.hidden_size, a.hidden_size * MERGE**2
    shapes: Shapes = {"patch_embed.proj.weight": (D, 3, a.frames, a.patch_size, a.patch_size)}
    shapes |= {f"merger.ln_q.{part}": (D,) for part in ("weight", "bias")[: 1 + (a.norm == "layer_norm")]}
    shapes |= linear("merger.mlp.0", width, width) | linear("merger.mlp.2", out_size, width)
    each = {**layer(a), **linear("attn.qkv", 3 * D, D), **linear("attn.proj", D, D)}
    for index in range(a.num_layers):
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in each.items()}
    return {TOWER + name: shape for name, shape in shapes.items()}


MULTIMODAL = Multimodal(
    name="qwen2_5_vl",
    architectures=("Qwen2_5_VLForConditionalGeneration",),
    prefix="",
    language=language,
    vision=vision,
    build=build,
    tensors=tensors,
    twin=build_twin,
    tiny=TINY,
    words=WORDS,
    template=TEMPLATE,
    processor=PROCESSOR,
    tower=("visual",),
)
