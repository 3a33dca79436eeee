"""penalise: repetition over prompt and output (once per distinct token), then frequency and presence over output."""

from __future__ import annotations

import torch
from torch import Tensor


def penalise(x_RV: Tensor, places_R: Tensor, seen_SV: Tensor, counts_SV: Tensor, factors_R3: Tensor) -> None:
    """Changes x. factors: repetition (1: none), presence and frequency (0: none)."""
    counts_RV = counts_SV[places_R].float()
    drawn_RV = counts_RV > 0
    repetition_R1, presence_R1, frequency_R1 = (factors_R3[:, i, None] for i in range(3))
    scaled_RV = torch.where(x_RV > 0, x_RV / repetition_R1, x_RV * repetition_R1)
    x_RV.copy_(torch.where(seen_SV[places_R] | drawn_RV, scaled_RV, x_RV))
    x_RV -= frequency_R1 * counts_RV
    x_RV -= presence_R1 * drawn_RV
