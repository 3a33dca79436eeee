"""Linears of all experts in plain torch: one expert after the other over its own rows.

Expert weights stay as they were stored, so that every class is served; each is an expert's reference linear. Where a
step is being captured no length may be read: every expert then runs over all rows, and keeps its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.ops import Prepared, PreparedExperts
from tokenmill.kernels.reference.prepare_linear import prepare_linear
from tokenmill.weights.contract import Weight


def prepare_experts(
    weights: tuple[Weight, ...], biases: tuple[Tensor | None, ...], dtype: torch.dtype
) -> PreparedExperts:
    """A callable (x_PM sorted by expert, ends_E) -> y_PN. Weights must already lie where x will be."""
    return ExpertLinears(tuple(prepare_linear(*pair, dtype) for pair in zip(weights, biases, strict=True)))


class ExpertLinears:
    """P rows, each one token's for one expert. Out: [P, N] in the dtype. Any backend's linears will do."""

    def __init__(self, linears: tuple[Prepared, ...]):
        self.linears = linears

    def __call__(self, x_PM: Tensor, ends_E: Tensor) -> Tensor:
        if x_PM.is_cuda and torch.cuda.is_current_stream_capturing():
            return self._all_rows(x_PM, ends_E)
        ends = ends_E.tolist()
        spans = zip(self.linears, [0, *ends[:-1]], ends, strict=True)
        return torch.cat([linear(x_PM[first:last]) for linear, first, last in spans if last > first])

    def _all_rows(self, x_PM: Tensor, ends_E: Tensor) -> Tensor:
        expert_P1 = torch.searchsorted(ends_E, torch.arange(len(x_PM), device=x_PM.device), right=True)[:, None]
        out_PN = self.linears[0](x_PM)
        for index, linear in enumerate(self.linears[1:], 1):
            out_PN = torch.where(expert_P1 == index, linear(x_PM), out_PN)
        return out_PN
