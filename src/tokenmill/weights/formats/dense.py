"""Plain weights: `NAME.weight`, float16, bfloat16 or float32, [N, M] (or [E, N, M])."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.weights.classes import Dense
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme, Suffixes


def claims(config: Mapping[str, Any]) -> Scheme | None:
    """Never: a checkpoint without quantization_config is plain without being asked."""
    return None


def suffixes(scheme: Scheme) -> Suffixes:
    return Suffixes(needed=("weight",))


def read(tensors: Mapping[str, Tensor], scheme: Scheme) -> Weight:
    return Dense(tensors["weight"])


def write(weight: Weight, scheme: Scheme) -> dict[str, Tensor]:
    if not isinstance(weight, Dense):
        raise FormatError(f"a plain file holds Dense weights, not {type(weight).__name__}: dequantize it first")
    return {"weight": weight.value}


def manifest(scheme: Scheme) -> dict[str, Any]:
    return {}
