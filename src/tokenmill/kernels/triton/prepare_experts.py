"""prepare_experts: the reference's loop over experts, each of them this backend's linear of its weight.

Weights stay packed, and nothing is dequantized at each call as the reference does; one product for all experts is not
written yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.ops import PreparedExperts
from tokenmill.kernels.reference.prepare_experts import ExpertLinears
from tokenmill.kernels.triton.prepare_linear import prepare_linear
from tokenmill.weights.contract import Weight


def prepare_experts(
    weights: tuple[Weight, ...], biases: tuple[Tensor | None, ...], dtype: torch.dtype
) -> PreparedExperts:
    """As the reference."""
    return ExpertLinears(tuple(prepare_linear(*pair, dtype) for pair in zip(weights, biases, strict=True)))
