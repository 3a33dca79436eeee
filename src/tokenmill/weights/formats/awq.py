"""AWQ "gemm" files (AutoAWQ, llm-awq through it, LMDeploy): 4 bits, packed along N in AWQ's order of nibbles.

On disk, per linear: qweight int32 [M, N / 8], qzeros int32 [Q, N / 8], scales [Q, N]; w = (code - zero) * scale.
The other layouts of the same name ("gemv", "gemv_fast", "llm-awq") are refused with the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.log import safe
from tokenmill.weights.classes import DENSE_DTYPES, IntGroup, check
from tokenmill.weights.contract import Weight
from tokenmill.weights.packing import awq_pack, awq_unpack, pack
from tokenmill.weights.scheme import Scheme, Suffixes, read_group

BITS = 4
MAX_ZERO = 15


def claims(config: Mapping[str, Any]) -> Scheme | None:
    if str(config.get("quant_method", "")).lower() != "awq":
        return None
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise FormatError(
            f"AWQ version {safe(version, 40)!r} is not read; only 'gemm' is: "
            "quantize again with version gemm (AutoAWQ: quant_config version 'GEMM')"
        )
    bits = config.get("bits", config.get("w_bit", BITS))
    if bits != BITS:
        raise FormatError(f"AWQ files hold 4-bit codes, config.json says {safe(bits, 20)}")
    group = read_group(config.get("group_size", config.get("q_group_size", 128)))
    skip = tuple(map(str, config.get("modules_to_not_convert") or ()))
    return Scheme("awq", "int", "gemm", BITS, group, symmetric=not config.get("zero_point", True), skip=skip)


def suffixes(scheme: Scheme) -> Suffixes:
    return Suffixes(needed=("qweight", "scales"), optional=("qzeros",))


def read(tensors: Mapping[str, Tensor], scheme: Scheme) -> Weight:
    qweight, scales = tensors["qweight"], tensors["scales"]
    num_in, num_out = qweight.shape[0], scales.shape[-1]
    groups = 1 if scheme.group is None else -(-num_in // scheme.group)
    check("qweight", qweight, (num_in, num_out // 8), (torch.int32,))
    check("scales", scales, (groups, num_out), DENSE_DTYPES)
    codes = pack(awq_unpack(qweight).T.contiguous(), BITS)
    zeros = _read_zeros(tensors.get("qzeros"), (groups, num_out // 8), scheme)
    return IntGroup(codes, scales.T.contiguous(), zeros, BITS, scheme.group, num_in)


def _read_zeros(qzeros: Tensor | None, shape: tuple[int, int], scheme: Scheme) -> Tensor | None:
    if qzeros is None:
        if scheme.symmetric:
            return None
        raise FormatError("qzeros are missing, and config.json says zero_point")
    check("qzeros", qzeros, shape, (torch.int32,))
    return awq_unpack(qzeros).T.contiguous().to(torch.int16)


def write(weight: Weight, scheme: Scheme) -> dict[str, Tensor]:
    if not isinstance(weight, IntGroup) or weight.bits != BITS:
        raise FormatError("AWQ holds 4-bit integer weights only: choose another format or 4 bits")
    if weight.g_idx is not None:
        raise FormatError("AWQ has no act-order: quantize with static groups, or write GPTQ or compressed-tensors")
    if weight.shape[0] % 8 or weight.codes.dim() != 2:
        raise FormatError(f"AWQ packs 8 out-features a word: {weight.shape[0]} out-features do not fit")
    zeros = weight.filled_zeros()
    if bool((zeros > MAX_ZERO).any()) or bool((zeros < 0).any()):
        raise FormatError(f"AWQ stores zeros 0..15; this weight has {int(zeros.max())}: write compressed-tensors")
    return {
        "qweight": awq_pack(weight.unpacked().T.contiguous()),
        "qzeros": awq_pack(zeros.to(torch.uint8).T.contiguous()),
        "scales": weight.scales.T.contiguous(),
    }


def manifest(scheme: Scheme) -> dict[str, Any]:
    """Always with zero_point: symmetric weights are written with zeros of 8, which every reader takes."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": BITS,
        "group_size": scheme.group or -1,
        "zero_point": True,
        "modules_to_not_convert": list(scheme.skip) or None,
    }
