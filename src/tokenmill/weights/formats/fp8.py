"""Hugging Face "fp8" files (DeepSeek's layout): float8 weights with one scale per block, or one per tensor.

On disk, per linear: weight float8 [N, M] and weight_scale_inv float [ceil(N / rows), ceil(M / columns)]. Despite the
name w = code * weight_scale_inv. Without weight_block_size: weight_scale, one value, and input_scale where static.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.log import safe
from tokenmill.weights.classes import Fp8Block, Fp8Tensor
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme, Suffixes, read_block


def claims(config: Mapping[str, Any]) -> Scheme | None:
    if str(config.get("quant_method", "")).lower() != "fp8":
        return None
    fmt = str(config.get("fmt", "e4m3")).lower()
    if fmt not in ("e4m3", "float8_e4m3fn"):
        raise FormatError(f"fp8 fmt {safe(fmt, 40)} is not read; e4m3 is")
    skip = tuple(map(str, config.get("modules_to_not_convert") or config.get("ignored_layers") or ()))
    static = str(config.get("activation_scheme", "dynamic")).lower() == "static"
    if config.get("weight_block_size") is None:
        return Scheme("fp8", "fp8-tensor", bits=8, skip=skip, activation="fp8-static" if static else "fp8-tensor")
    if static:
        raise FormatError("fp8 by block with activation_scheme static is not run: use dynamic")
    block = read_block(config["weight_block_size"])
    return Scheme("fp8", "fp8-block", bits=8, block=block, skip=skip, activation="fp8-group")


def suffixes(scheme: Scheme) -> Suffixes:
    if scheme.weight == "fp8-block":
        return Suffixes(needed=("weight", "weight_scale_inv"))
    return Suffixes(needed=("weight", "weight_scale"), optional=("input_scale",))


def read(tensors: Mapping[str, Tensor], scheme: Scheme) -> Weight:
    if scheme.block is not None:
        return Fp8Block(tensors["weight"], tensors["weight_scale_inv"], scheme.block, scheme.activation)
    scales = tensors["weight_scale"]
    if scales.numel() != 1:
        raise FormatError(f"shapes disagree: weight_scale has {tuple(scales.shape)}, where one value is needed")
    input_scale = tensors["input_scale"].reshape(1, 1) if "input_scale" in tensors else None
    return Fp8Tensor(tensors["weight"], scales.reshape(1, 1), input_scale, scheme.activation)


def write(weight: Weight, scheme: Scheme) -> dict[str, Tensor]:
    if isinstance(weight, Fp8Block | Fp8Tensor) and weight.codes.dtype == torch.float8_e4m3fn:
        if isinstance(weight, Fp8Block):
            return {"weight": weight.codes, "weight_scale_inv": weight.scales}
        static = weight.input_scale
        tensors = {"weight": weight.codes, "weight_scale": weight.scales.reshape(1)}
        return tensors if static is None else tensors | {"input_scale": static.reshape(1)}
    raise FormatError(f"fp8 files hold e4m3 by block or tensor, not {type(weight).__name__}: write compressed-tensors")


def manifest(scheme: Scheme) -> dict[str, Any]:
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "static" if scheme.activation == "fp8-static" else "dynamic",
        "weight_block_size": list(scheme.block) if scheme.block else None,
        "modules_to_not_convert": list(scheme.skip) or None,
    }
