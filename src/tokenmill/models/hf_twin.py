"""A vision-language folder in transformers' own form, as transformers runs it: its class reads config and tensors.

Written apart from the towers, because it checks them: nothing of their arithmetic is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenmill.models.twin import read_twin, twin_config
from tokenmill.vision.tiles import Triple


class HfTwin:
    """transformers' model in fp32. `features(tiles)`, `logits(ids, tiles)`: bytes [N, size, size, 3], no grids."""

    def __init__(self, model: Any, mean: Triple, std: Triple):
        self.model = model
        self.mean, self.std = np.asarray(mean), np.asarray(std)

    def features(self, tiles: Tensor, grids: Sequence[tuple[int, ...]] = ()) -> Tensor:
        found: Any = self.model.model.get_image_features(pixel_values=self.pixels(tiles)).pooler_output
        return torch.cat([one.reshape(-1, one.shape[-1]) for one in found])

    def logits(self, ids_T: Tensor, tiles: Tensor, grids: Sequence[tuple[int, ...]] = ()) -> Tensor:
        logits: Tensor = self.model(input_ids=ids_T[None], pixel_values=self.pixels(tiles)).logits
        return logits[0].float()

    def pixels(self, tiles: Tensor) -> Tensor:
        """Scaled and normalised [N, 3, size, size], by numpy's arithmetic."""
        normed = (tiles.numpy().astype(np.float64) / 255 - self.mean) / self.std
        return torch.from_numpy(normed.transpose(0, 3, 1, 2).astype(np.float32))


def read_hf_twin(config: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """transformers' model of a whole config and every tensor by its name on disk; every name must be met."""
    # Tensors come dequantized.
    text = {key: value for key, value in config["text_config"].items() if key != "quantization_config"}
    whole = twin_config({**config, "text_config": text})
    from transformers import AutoModelForImageTextToText

    return read_twin(AutoModelForImageTextToText, whole, tensors)
