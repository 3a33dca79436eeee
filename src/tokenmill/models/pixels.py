"""Bytes of pictures into numbers on the device: a table of values, so that host and device agree bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.vision.tiles import Triple, scale_table


class PixelScale:
    """(byte / 255 - mean) / std of each channel: `scale(tiles)`, uint8 [..., 3] in, fp32 of that shape out."""

    def __init__(self, mean: Triple, std: Triple, device: torch.device):
        # A value for each channel and byte, laid out so that byte + 256 * channel finds it.
        self.table = torch.from_numpy(scale_table(mean, std)).reshape(-1).to(device)
        self.shifts = torch.tensor([0, 256, 512], dtype=torch.int32, device=device)

    def __call__(self, tiles: Tensor) -> Tensor:
        return functional.embedding(tiles.to(torch.int32) + self.shifts, self.table[:, None])[..., 0]
