"""LMDeploy's "smooth_quant" files: 8-bit codes with one scale per out-feature, inputs quantized per token at run time.

On disk, per linear: weight int8 or float8 [N, M], scale float32 [N, 1]; w = code * scale. Norms are stored plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.log import safe
from tokenmill.weights.classes import Fp8Channel, Int8Channel
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme, Suffixes

DTYPES = {"int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def claims(config: Mapping[str, Any]) -> Scheme | None:
    if str(config.get("quant_method", "")).lower() != "smooth_quant":
        return None
    dtype = str(config.get("quant_dtype", "int8")).removeprefix("torch.")
    if dtype not in DTYPES:
        raise FormatError(f"smooth_quant quant_dtype {safe(dtype, 40)} is not read; {', '.join(DTYPES)} are")
    skip = tuple(map(str, config.get("modules_to_not_convert") or ()))
    if dtype == "int8":
        return Scheme("smooth_quant", "int8-channel", dtype, 8, skip=skip, activation="int8-token")
    return Scheme("smooth_quant", "fp8-channel", dtype, 8, skip=skip, activation="fp8-token")


def suffixes(scheme: Scheme) -> Suffixes:
    return Suffixes(needed=("weight", "scale"))


def read(tensors: Mapping[str, Tensor], scheme: Scheme) -> Weight:
    codes, scales = tensors["weight"], tensors["scale"].reshape(-1, 1)
    if codes.dtype != DTYPES[scheme.dialect]:
        raise FormatError(f"config.json says {scheme.dialect}, the weight has {codes.dtype}")
    if codes.dtype == torch.int8:
        return Int8Channel(codes, scales, scheme.activation)
    return Fp8Channel(codes, scales, None, scheme.activation)


def write(weight: Weight, scheme: Scheme) -> dict[str, Tensor]:
    if isinstance(weight, Int8Channel | Fp8Channel) and weight.codes.dtype == DTYPES.get(scheme.dialect):
        return {"weight": weight.codes, "scale": weight.scales.float()}
    raise FormatError(f"smooth_quant {scheme.dialect} does not hold this {type(weight).__name__}")


def manifest(scheme: Scheme) -> dict[str, Any]:
    return {
        "quant_method": "smooth_quant",
        "quant_dtype": scheme.dialect,
        "modules_to_not_convert": list(scheme.skip) or None,
    }
