"""Muon: momentum whose update is made nearly orthogonal before it is applied. For hidden matrices only.

Source: K. Jordan and others, "Muon: an optimizer for hidden layers in neural networks" (2024), with its quintic
Newton-Schulz coefficients; step scaled by sqrt(max(1, rows / columns)). Matrices of one shape are handled as one
batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(stack: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix of `stack` (B, rows, columns) near one. In bf16 on CUDA, fp32 else."""
    a, b, c = COEFFICIENTS
    x = stack.bfloat16() if stack.is_cuda else stack.float()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                updates = orthogonalize(torch.stack([self._momentum(p, group["momentum"]) for p in params]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)

    def _momentum(self, p: Tensor, beta: float) -> Tensor:
        """Nesterov's look-ahead on the running average of gradients."""
        state = self.state[p]
        if "average" not in state:
            state["average"] = torch.zeros_like(p)
        average: Tensor = state["average"].lerp_(p.grad, 1 - beta)
        return p.grad.lerp(average, beta)
