"""Linears of all experts on a CPU: the reference's order of work, over this backend's linears."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.bind import BindFacts
from tokenmill.kernels.cpu.prepare_linear import prepare_linear
from tokenmill.kernels.cpu.prepare_linear import refuses as refuses_linear
from tokenmill.kernels.ops import PreparedExperts
from tokenmill.kernels.reference.prepare_experts import ExpertLinears
from tokenmill.weights.contract import Weight


def refuses(facts: BindFacts) -> str | None:
    return refuses_linear(facts)


def prepare_experts(
    weights: tuple[Weight, ...], biases: tuple[Tensor | None, ...], dtype: torch.dtype
) -> PreparedExperts:
    """As the reference."""
    return ExpertLinears(tuple(prepare_linear(*pair, dtype) for pair in zip(weights, biases, strict=True)))
