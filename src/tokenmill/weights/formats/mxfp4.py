"""MXFP4 files of GPT-OSS: all experts of a layer in one tensor, 4-bit floats with a power of two for 32 in-features.

On disk, per stack of experts: NAME_blocks uint8 [E, N, M / 32, 16] and NAME_scales uint8 [E, N, M / 32]. Only experts
are quantized; everything else is plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.weights.classes import MX_GROUP, Mxfp4
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme, Suffixes


def claims(config: Mapping[str, Any]) -> Scheme | None:
    if str(config.get("quant_method", "")).lower() != "mxfp4":
        return None
    return Scheme("mxfp4", "mxfp4", bits=4, group=MX_GROUP, skip=tuple(config.get("modules_to_not_convert") or ()))


def suffixes(scheme: Scheme) -> Suffixes:
    return Suffixes(needed=("blocks", "scales"), joiner="_")


def read(tensors: Mapping[str, Tensor], scheme: Scheme) -> Weight:
    blocks, scales = tensors["blocks"], tensors["scales"]
    if blocks.dim() != 4 or blocks.shape[-1] != MX_GROUP // 2 or blocks.shape[:-1] != scales.shape:
        raise FormatError(
            f"shapes disagree: blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)}; [E, N, Q, 16] and "
            "[E, N, Q] are needed"
        )
    return Mxfp4(blocks.flatten(-2), scales)


def write(weight: Weight, scheme: Scheme) -> dict[str, Tensor]:
    if not isinstance(weight, Mxfp4) or weight.num_experts is None:
        raise FormatError(f"mxfp4 files hold stacks of MXFP4 experts, not {type(weight).__name__}")
    blocks = weight.codes.view(*weight.scales.shape, MX_GROUP // 2)
    return {"blocks": blocks, "scales": weight.scales}


def manifest(scheme: Scheme) -> dict[str, Any]:
    return {"quant_method": "mxfp4", "modules_to_not_convert": list(scheme.skip)}
