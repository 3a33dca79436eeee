"""Codes that are visited again: each moves to the best place on its grid while all others stay.

GPTQ decides a column once and can only look ahead. Going over the columns again lowers the same objective, the squared
output error under the damped Hessian, and never raises it. N out, M in, columns in visiting order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS = 128
PASSES = 2


@dataclass(frozen=True, slots=True)
class Places:
    """Scales and zeros of every column [N, M], and the highest code."""

    scales_NM: Tensor
    zeros_NM: Tensor
    top: int

    def values(self, codes_NM: Tensor) -> Tensor:
        return (codes_NM - self.zeros_NM) * self.scales_NM


def polish(codes_NM: Tensor, places: Places, target_NM: Tensor, hessian_MM: Tensor) -> Tensor:
    """Better codes for target_NM; the given ones are left as they are."""
    codes = codes_NM.clone()
    # Half of the objective's gradient at the values, kept up to date.
    slope_NM = (places.values(codes) - target_NM) @ hessian_MM
    for _ in range(PASSES):
        for start in range(0, codes.shape[1], COLUMNS):
            span = slice(start, start + COLUMNS)
            moved = _pass_span(codes, places, slope_NM[:, span], (span, hessian_MM))
            slope_NM += moved @ hessian_MM[span]
    return codes


def _pass_span(codes: Tensor, places: Places, slope_NC: Tensor, at: tuple[slice, Tensor]) -> Tensor:
    """Moves the codes of one span in place; by how much the values moved [N, C]. Other spans' slopes wait for that."""
    span, inner = at[0], at[1][at[0], at[0]]
    scales, zeros = places.scales_NM[:, span], places.zeros_NM[:, span]
    slope, held, moved = slope_NC.clone(), codes[:, span], torch.zeros_like(slope_NC)
    for i in range(held.shape[1]):
        value = (held[:, i] - zeros[:, i]) * scales[:, i]
        wanted = value - slope[:, i] / inner[i, i]
        held[:, i] = (torch.round(wanted / scales[:, i]) + zeros[:, i]).clamp(0, places.top)
        moved[:, i] = (held[:, i] - zeros[:, i]) * scales[:, i] - value
        slope += moved[:, i, None] * inner[i]
    return moved
