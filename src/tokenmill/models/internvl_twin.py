"""InternVL as transformers runs it: the authors' names turned into those of `InternVLForConditionalGeneration`.

Written apart from `internvl.py`, because it checks it: nothing of its arithmetic is used here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenmill.errors import ConfigError, FormatError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOWER_NAMES = {
    "vision_model.embeddings.class_embedding": "model.vision_tower.embeddings.cls_token",
    "vision_model.embeddings.patch_embedding": "model.vision_tower.embeddings.patch_embeddings.projection",
    "vision_model.embeddings.position_embedding": "model.vision_tower.embeddings.position_embeddings",
    "vision_model.encoder.layers.": "model.vision_tower.encoder.layer.",
    "mlp1.0": "model.multi_modal_projector.layer_norm",
    "mlp1.1": "model.multi_modal_projector.linear_1",
    "mlp1.3": "model.multi_modal_projector.linear_2",
}
LAYER_NAMES = {
    ".ls1": ".lambda_1", ".ls2": ".lambda_2", ".norm1": ".layernorm_before", ".norm2": ".layernorm_after",
    ".attn.proj": ".attention.projection_layer", ".attn.q_norm": ".attention.q_norm",
    ".attn.k_norm": ".attention.k_norm",
}  # fmt: skip


class Twin:
    """transformers' model in fp32. Tiles as bytes [N, size, size, 3]; grids are not read."""

    def __init__(self, model: Any):
        self.model = model

    def features(self, tiles: Tensor, grids: Any = ()) -> Tensor:
        found = self.model.model.get_image_features(pixel_values=pixels(tiles))
        features: Tensor = getattr(found, "pooler_output", found)
        return features.flatten(0, -2)

    def logits(self, ids_T: Tensor, tiles: Tensor, grids: Any = ()) -> Tensor:
        logits: Tensor = self.model(input_ids=ids_T[None], pixel_values=pixels(tiles)).logits
        return logits[0].float()


def pixels(tiles: Tensor) -> Tensor:
    """Scaled and normalised [N, 3, size, size], by numpy's arithmetic."""
    scaled = tiles.numpy().astype(np.float64) / 255
    normed = (scaled - np.asarray(MEAN)) / np.asarray(STD)
    return torch.from_numpy(normed.transpose(0, 3, 1, 2).astype(np.float32))


def build_twin(config: dict[str, Any], language: tuple[dict[str, Any], dict[str, Tensor]], tower: dict[str, Tensor],
               context_id: int) -> Twin:
    """transformers' model with these tensors; every name must be met."""
    try:
        from transformers import AutoConfig, InternVLConfig, InternVLForConditionalGeneration
    except ImportError as error:
        raise ConfigError("comparing with transformers needs it: pip install 'tokenmill[lite]'") from error
    text, tensors = language
    plain = {key: value for key, value in text.items() if key not in ("model_type", "quantization_config", "auto_map")}
    whole = InternVLConfig(
        text_config=AutoConfig.for_model(text["model_type"], **plain),
        vision_config=vision_config(config["vision_config"]),
        image_token_id=context_id,
        image_seq_length=1,
        downsample_ratio=config["downsample_ratio"],
        vision_feature_layer=config.get("select_layer", -1),
        tie_word_embeddings=False,
    )
    # transformers' typing differs between releases.
    kind: Any = InternVLForConditionalGeneration
    model = kind._from_config(whole, dtype=torch.float32, attn_implementation="eager").eval()
    named = {key.replace("model.", "model.language_model.", 1): value for key, value in tensors.items()}
    absent, unknown = model.load_state_dict({**named, **tower_tensors(tower)}, strict=False)
    if absent or unknown:
        raise FormatError(f"transformers misses {absent[:4]} and does not know {unknown[:4]} in this checkpoint")
    return Twin(model)


def vision_config(c: dict[str, Any]) -> dict[str, Any]:
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
            "num_channels", "hidden_act", "layer_norm_eps", "norm_type")  # fmt: skip
    return {
        **{key: c[key] for key in same if key in c},
        "use_qk_norm": c["qk_normalization"], "attention_bias": c["qkv_bias"],
    }  # fmt: skip


def tower_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = _renamed(name)
        if ".attn.qkv." not in new:
            named[new] = value
            continue
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            named[new.replace(".attn.qkv.", f".attention.{letter}_proj.")] = part
    return named


def _renamed(name: str) -> str:
    for ours, theirs in {**TOWER_NAMES, **LAYER_NAMES}.items():
        # A tensor, or a prefix of several: never half a number.
        if name == ours or ours in name:
            name = name.replace(ours, theirs, 1)
    return name
