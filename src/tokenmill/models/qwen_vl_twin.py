"""Qwen2-VL and Qwen2.5-VL as transformers runs them, from the names of their folders.

Written apart from the families' files, because it checks them: nothing of their arithmetic is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenmill.errors import ConfigError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FRAMES = 2


class Twin:
    """transformers' model in fp32. Pieces as bytes [N, 3, patch, patch]; grids of vectors, one of each image."""

    def __init__(self, model: Any, context_id: int):
        self.model, self.context_id = model, context_id

    def features(self, pieces: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        found = self.model.model.get_image_features(pixels(pieces), sizes(grids))
        return torch.cat(list(getattr(found, "pooler_output", found)))

    def logits(self, ids_T: Tensor, pieces: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        found = self.model(
            input_ids=ids_T[None], pixel_values=pixels(pieces), image_grid_thw=sizes(grids),
            mm_token_type_ids=(ids_T == self.context_id).int()[None],
        )  # fmt: skip
        logits: Tensor = found.logits[0].float()
        return logits


def pixels(pieces: Tensor) -> Tensor:
    """Scaled, normalised, every patch in all its frames: [N, 3 * frames * patch * patch], by numpy's arithmetic."""
    scaled = pieces.numpy().astype(np.float64) / 255
    normed = (scaled - np.asarray(MEAN)[:, None, None]) / np.asarray(STD)[:, None, None]
    framed = np.repeat(normed[:, :, None], FRAMES, 2)
    return torch.from_numpy(framed.reshape(len(framed), -1).astype(np.float32))


def sizes(grids: Sequence[tuple[int, ...]]) -> Tensor:
    """Frames, rows and columns of patches."""
    return torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in grids])


def build_twin(config: dict[str, Any], language: tuple[dict[str, Any], dict[str, Tensor]], tower: dict[str, Tensor],
               context_id: int) -> Twin:
    """transformers' model with these tensors; every name must be met."""
    # Imported here: the reading of a folder knows this module, through the family.
    from tokenmill.models.twin import read_twin

    try:
        from transformers import AutoConfig, AutoModelForImageTextToText
    except ImportError as error:
        raise ConfigError("comparing with transformers needs it: pip install 'tokenmill[lite]'") from error
    kept = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    kept |= {"image_token_id": context_id, "attn_implementation": "eager"}
    whole = AutoConfig.for_model(config["model_type"], **kept)
    return Twin(read_twin(AutoModelForImageTextToText, whole, {**language[1], **tower}), context_id)
