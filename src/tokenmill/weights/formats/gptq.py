"""GPTQ files, v1 ("gptq") and v2 ("gptq_v2"): 2, 3, 4 or 8 bits, packed along M as one dense stream per column.

On disk, per linear: qweight int32 [M * bits / 32, N], qzeros int32 [Q, N * bits / 32], scales [Q, N], g_idx int32 [M];
w = (code - zero[g_idx]) * scale[g_idx]. v1 stores zero - 1 in each field. Readers differ; ours:
- field + 1, where 16 (of 4 bits) is a legal zero and stays 16;
- files that GPTQModel wrote subtracted 1 from every field of the whole word at once, so a zero of 0 borrowed from its
  neighbour; adding the same word back, modulo 2^32, undoes that exactly.
We write v1 only where every zero is at least 1. v2 stores the zero as it is; only checkpoint_format (or format) tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.log import safe
from tokenmill.weights.classes import DENSE_DTYPES, IntGroup, check
from tokenmill.weights.contract import Weight
from tokenmill.weights.packing import BITS, add_words, num_words, pack, unpack
from tokenmill.weights.scheme import Rule, Scheme, Suffixes, read_group

V1, V1_BORROWED, V2 = "gptq", "gptq_borrowed", "gptq_v2"


def claims(config: Mapping[str, Any]) -> Scheme | None:
    if str(config.get("quant_method", "")).lower() not in ("gptq", "gptq_v2"):
        return None
    scheme = Scheme(
        "gptq", "int", _dialect(config), _bits(config.get("bits", 4)), read_group(config.get("group_size", -1)),
        symmetric=bool(config.get("sym", True)), act_order=bool(config.get("desc_act", False)),
    )  # fmt: skip
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise FormatError(f"dynamic must map patterns to settings, not {safe(dynamic, 60)}")
    return replace(scheme, rules=tuple(_rule(scheme, str(key), value) for key, value in dynamic.items()))


def _dialect(config: Mapping[str, Any]) -> str:
    announced = config.get("checkpoint_format") or config.get("format") or config.get("quant_method")
    if announced == V2:
        return V2
    if announced != V1:
        raise FormatError(f"GPTQ checkpoint_format {safe(announced, 40)} is not read; 'gptq' and 'gptq_v2' are")
    meta = config.get("meta")
    writer = meta.get("quantizer") if isinstance(meta, Mapping) else None
    return V1_BORROWED if "gptqmodel" in str(writer).lower() else V1


def _bits(value: object) -> int:
    if type(value) is not int or value not in BITS:
        raise FormatError(f"GPTQ bits must be one of {', '.join(map(str, BITS))}, not {safe(value, 20)}")
    return value


def _rule(scheme: Scheme, key: str, value: object) -> Rule:
    """One entry of `dynamic`: "-:regex" leaves linears plain, "+:regex" or "regex" changes their settings."""
    pattern = key[2:] if key[:2] in ("-:", "+:") else key
    if key.startswith("-:"):
        return Rule(pattern, None)
    settings = value if isinstance(value, Mapping) else {}
    changed = replace(
        scheme,
        bits=_bits(settings.get("bits", scheme.bits)),
        group=read_group(settings.get("group_size", scheme.group)),
        symmetric=bool(settings.get("sym", scheme.symmetric)),
    )
    return Rule(pattern, changed)


def suffixes(scheme: Scheme) -> Suffixes:
    return Suffixes(needed=("qweight", "qzeros", "scales"), optional=("g_idx",))


def read(tensors: Mapping[str, Tensor], scheme: Scheme) -> Weight:
    qweight, scales, bits = tensors["qweight"], tensors["scales"], scheme.bits
    num_out = scales.shape[-1]
    num_in = _num_in(tensors, bits)
    groups = 1 if scheme.group is None else -(-num_in // scheme.group)
    check("qweight", qweight, (num_words(num_in, bits), num_out), (torch.int32,))
    check("scales", scales, (groups, num_out), DENSE_DTYPES)
    check("qzeros", tensors["qzeros"], (groups, num_words(num_out, bits)), (torch.int32,))
    zeros: Tensor | None = _read_zeros(tensors["qzeros"], scheme, num_out)
    if zeros is not None and scheme.symmetric and bool((zeros == 1 << (bits - 1)).all()):
        zeros = None
    return IntGroup(
        qweight.T.contiguous(), scales.T.contiguous(), zeros, bits, scheme.group, num_in,
        _read_order(tensors.get("g_idx"), num_in, groups, scheme),
    )  # fmt: skip


def _num_in(tensors: Mapping[str, Tensor], bits: int) -> int:
    if "g_idx" in tensors:
        return tensors["g_idx"].shape[-1]
    return tensors["qweight"].shape[0] * 32 // bits


def _read_zeros(qzeros: Tensor, scheme: Scheme, num_out: int) -> Tensor:
    bits = scheme.bits
    if scheme.dialect == V1_BORROWED:
        qzeros = add_words(qzeros, _ones(num_out, bits))
    fields = unpack(qzeros, bits, num_out).T.contiguous().to(torch.int16)
    return fields + 1 if scheme.dialect == V1 else fields


def _ones(num_out: int, bits: int) -> Tensor:
    """The words that hold 1 in every field."""
    return pack(torch.ones(num_out, dtype=torch.uint8), bits)


def _read_order(g_idx: Tensor | None, num_in: int, groups: int, scheme: Scheme) -> Tensor | None:
    """None for the plain order i // group, however the file says it."""
    if g_idx is None:
        return None
    check("g_idx", g_idx.reshape(1, -1), (1, num_in), (torch.int32, torch.int64))
    if bool((g_idx < 0).any()) or bool((g_idx >= groups).any()):
        raise FormatError(f"g_idx points outside the {groups} groups")
    plain = torch.arange(num_in) // (scheme.group or num_in)
    return None if torch.equal(g_idx.long(), plain) else g_idx.to(torch.int32).reshape(1, -1)


def write(weight: Weight, scheme: Scheme) -> dict[str, Tensor]:
    if not isinstance(weight, IntGroup) or weight.codes.dim() != 2:
        raise FormatError("GPTQ holds integer weights of 2, 3, 4 or 8 bits only: choose another format")
    num_out, num_in = weight.shape
    if num_in * weight.bits % 32 or num_out * weight.bits % 32:
        raise FormatError(f"GPTQ packs whole words: {weight.shape} at {weight.bits} bits do not fit")
    order = weight.g_idx
    if order is None:
        order = (torch.arange(num_in) // (weight.group or num_in)).to(torch.int32)
    return {
        "qweight": weight.codes.T.contiguous(),
        "qzeros": _write_zeros(weight, scheme),
        "scales": weight.scales.T.contiguous(),
        "g_idx": order.reshape(-1).contiguous(),
    }


def _write_zeros(weight: IntGroup, scheme: Scheme) -> Tensor:
    zeros, top = weight.filled_zeros(), 1 << weight.bits
    low, high = (0, top - 1) if scheme.dialect == V2 else (1, top)
    wrong = int(((zeros < low) | (zeros > high)).sum())
    if wrong:
        other = (
            "write gptq (v1) or compressed-tensors" if scheme.dialect == V2 else "write gptq_v2 or compressed-tensors"
        )
        raise FormatError(f"{scheme.dialect} stores zeros {low}..{high}; {wrong} groups lie outside: {other}")
    return pack((zeros - low).to(torch.uint8).T.contiguous(), weight.bits)


def manifest(scheme: Scheme) -> dict[str, Any]:
    dialect = V2 if scheme.dialect == V2 else V1
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group or -1,
        "sym": scheme.symmetric,
        "desc_act": scheme.act_order,
        "lm_head": False,
        "checkpoint_format": dialect,
        "format": dialect,
    }
    return config | ({"dynamic": {f"-:{name}": {} for name in scheme.skip}} if scheme.skip else {})
