"""What methods learn from calibration: sums over tokens, kept in fp32 on the block's device. M in-features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tokenmill.errors import ConfigError


class Gram:
    """The mean of x x^T over tokens [M, M]: Hessian of a linear's squared output error, up to a factor."""

    def __init__(self, num_in: int, device: torch.device | str = "cpu"):
        self.total = torch.zeros(num_in, num_in, device=device)
        self.tokens = 0

    def add(self, x_SM: Tensor) -> None:
        self.total.addmm_(x_SM.T, x_SM)
        self.tokens += len(x_SM)

    def mean(self) -> Tensor:
        if not self.tokens:
            raise ConfigError("the calibration set is empty: give --calib-samples of at least 1 and a longer text")
        return self.total / self.tokens


class Magnitudes:
    """Per channel: mean and largest absolute value over tokens."""

    def __init__(self, num_in: int, device: torch.device | str = "cpu"):
        self.total = torch.zeros(num_in, device=device)
        self.largest = torch.zeros(num_in, device=device)
        self.tokens = 0

    def add(self, x_SM: Tensor) -> None:
        self.total += x_SM.abs().sum(0)
        self.largest = torch.maximum(self.largest, x_SM.abs().amax(0))
        self.tokens += len(x_SM)

    def mean(self) -> Tensor:
        return self.total / max(self.tokens, 1)


def gram(inputs: Iterable[Tensor], num_in: int, device: torch.device | str = "cpu") -> Tensor:
    """The mean Gram matrix of sequences [S, M]."""
    found = Gram(num_in, device)
    for x in inputs:
        found.add(x)
    return found.mean()


def output_error(delta_NM: Tensor, gram_MM: Tensor) -> Tensor:
    """Mean squared output error of each out-feature [N] when the weight changes by delta: diag(d G d^T)."""
    return ((delta_NM @ gram_MM) * delta_NM).sum(1)
