"""compressed-tensors files (llm-compressor, vLLM): pack-quantized integers, int-quantized W8A8, float-quantized FP8.

On disk, per linear:
- pack-quantized: weight_packed int32 [N, ceil(M * bits / 32)] (unsigned codes, a dense stream along M), weight_scale
  [N, Q], weight_zero_point int32 [N * bits / 32, Q] packed along N where asymmetric, weight_shape [2], and weight_g_idx
  [M] under actorder "group". The config speaks of signed codes; stored ones, and zeros, are shifted by 2^(bits - 1).
- int-quantized: weight int8 [N, M], weight_scale [N, 1].
- float-quantized: weight float8 [N, M], weight_scale [1], [N, 1] or one per block, input_scale [1] where static.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.log import safe
from tokenmill.weights.classes import DENSE_DTYPES, Fp8Block, Fp8Channel, Fp8Tensor, Int8Channel, IntGroup, check
from tokenmill.weights.contract import Weight
from tokenmill.weights.packing import BITS, num_words, pack, unpack
from tokenmill.weights.scheme import Rule, Scheme, Suffixes, read_block, read_group

PACKED, INT, FLOAT = "pack-quantized", "int-quantized", "float-quantized"
VERSION = "0.19.0"


def claims(config: Mapping[str, Any]) -> Scheme | None:
    if str(config.get("quant_method", "")).lower() != "compressed-tensors":
        return None
    if (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise FormatError("compressed-tensors sparsity_config is not read: save the model dense")
    if (config.get("transform_config") or {}).get("config_groups"):
        raise FormatError("compressed-tensors transform_config is not read: save the model without transforms")
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise FormatError("compressed-tensors quantization_config has no config_groups")
    skip = tuple(map(str, config.get("ignore") or ()))
    return _combine([(_targets(g), _scheme(g, str(config.get("format")), skip)) for g in groups.values()])


def _targets(group: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, group.get("targets") or ("Linear",)))


def _combine(groups: list[tuple[tuple[str, ...], Scheme]]) -> Scheme:
    """One scheme where one group holds all linears; else rules by name over the group of the rest."""
    base = next((scheme for targets, scheme in groups if "Linear" in targets), None)
    rules = [Rule(_pattern(t), scheme) for targets, scheme in groups if scheme is not base for t in targets]
    if base is not None:
        return replace(base, rules=tuple(rules))
    return replace(groups[0][1], rules=(*rules, Rule("", None)))


def _pattern(target: str) -> str:
    return target[3:] if target.startswith("re:") else re.escape(target) + "$"


def _scheme(group: Mapping[str, Any], default_format: str, skip: tuple[str, ...]) -> Scheme:
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        raise FormatError("compressed-tensors config_groups entry has no weights")
    dialect = str(group.get("format") or default_format)
    kind = (str(weights.get("type", "int")), weights.get("num_bits"), str(weights.get("strategy")))
    scheme = Scheme(
        "compressed_tensors", dialect=dialect, bits=int(weights.get("num_bits") or 0), skip=skip,
        symmetric=bool(weights.get("symmetric", True)), activation=_activation(group.get("input_activations")),
        act_order=weights.get("actorder") in ("group", True),
    )  # fmt: skip
    if dialect == PACKED and kind[0] == "int" and kind[1] in BITS and kind[2] in ("group", "channel"):
        return replace(
            scheme, weight="int", group=read_group(weights.get("group_size")) if kind[2] == "group" else None
        )
    if dialect == INT and kind == ("int", 8, "channel") and scheme.symmetric:
        return replace(scheme, weight="int8-channel")
    if dialect == FLOAT and kind[:2] == ("float", 8) and kind[2] in ("tensor", "channel", "block"):
        block = read_block(weights.get("block_structure")) if kind[2] == "block" else None
        return replace(scheme, weight=f"fp8-{kind[2]}", block=block)
    grid = "symmetric" if scheme.symmetric else "asymmetric"
    raise FormatError(
        f"compressed-tensors {safe(dialect, 40)} with {safe(kind, 80)} {grid} is not read; {PACKED} is (int 2, 3, 4, 8 "
        f"bits by group or channel), {INT} (int 8 symmetric by channel), {FLOAT} (float 8 by tensor, channel or block)"
    )


def _activation(inputs: Mapping[str, Any] | None) -> str:
    if not inputs:
        return "none"
    kind, strategy = str(inputs.get("type", "int")), str(inputs.get("strategy"))
    dynamic = inputs.get("dynamic") in (True, "local")
    if inputs.get("num_bits") == 8 and kind == "int" and strategy == "token" and dynamic:
        return "int8-token"
    if inputs.get("num_bits") == 8 and kind == "float" and dynamic and strategy in ("token", "tensor", "group"):
        return f"fp8-{strategy}"
    if inputs.get("num_bits") == 8 and kind == "float" and strategy == "tensor":
        return "fp8-static"
    raise FormatError(
        f"compressed-tensors input_activations {safe(dict(inputs), 160)} are not run: use dynamic per token"
    )


def suffixes(scheme: Scheme) -> Suffixes:
    if scheme.dialect == PACKED:
        return Suffixes(("weight_packed", "weight_scale"), ("weight_zero_point", "weight_shape", "weight_g_idx"))
    return Suffixes(("weight", "weight_scale"), ("input_scale",))


def read(tensors: Mapping[str, Tensor], scheme: Scheme) -> Weight:
    if scheme.dialect == PACKED:
        return _read_packed(tensors, scheme)
    codes, scales = tensors["weight"], tensors["weight_scale"]
    if scheme.weight == "int8-channel":
        return Int8Channel(codes, scales.reshape(-1, 1), scheme.activation)
    if scheme.weight == "fp8-block":
        return Fp8Block(codes, scales, scheme.block or (128, 128), scheme.activation)
    input_scale = tensors["input_scale"].reshape(1, 1) if "input_scale" in tensors else None
    if scheme.weight == "fp8-channel":
        return Fp8Channel(codes, scales.reshape(-1, 1), input_scale, scheme.activation)
    if scales.numel() != 1:
        raise FormatError(f"shapes disagree: weight_scale has {tuple(scales.shape)}, where one value is needed")
    return Fp8Tensor(codes, scales.reshape(1, 1), input_scale, scheme.activation)


def _read_packed(tensors: Mapping[str, Tensor], scheme: Scheme) -> IntGroup:
    packed, scales, bits = tensors["weight_packed"], tensors["weight_scale"], scheme.bits
    num_out, num_in = packed.shape[0], packed.shape[-1] * 32 // bits
    if "weight_shape" in tensors:
        rows, num_in = (int(v) for v in tensors["weight_shape"].tolist())
        check("weight_packed", packed, (rows, num_words(num_in, bits)), (torch.int32,))
    groups = 1 if scheme.group is None else -(-num_in // scheme.group)
    check("weight_scale", scales, (num_out, groups), DENSE_DTYPES)
    order = tensors.get("weight_g_idx")
    if order is not None:
        check("weight_g_idx", order.reshape(1, -1), (1, num_in), (torch.int32, torch.int64))
        if bool((order < 0).any()) or bool((order >= groups).any()):
            raise FormatError(f"weight_g_idx points outside the {groups} groups")
        order = order.to(torch.int32).reshape(1, -1)
    zeros = _read_zeros(tensors.get("weight_zero_point"), (num_out, groups), scheme)
    return IntGroup(packed, scales, zeros, bits, scheme.group, num_in, order)


def _read_zeros(stored: Tensor | None, shape: tuple[int, int], scheme: Scheme) -> Tensor | None:
    """Packed along N, or (files of older releases) one int8 each, signed."""
    if scheme.symmetric:
        return None
    if stored is None:
        raise FormatError("weight_zero_point is missing, and config.json says asymmetric")
    if stored.dtype == torch.int8:
        check("weight_zero_point", stored, shape, (torch.int8,))
        return stored.to(torch.int16) + (1 << (scheme.bits - 1))
    check("weight_zero_point", stored, (num_words(shape[0], scheme.bits), shape[1]), (torch.int32,))
    return unpack(stored.T.contiguous(), scheme.bits, shape[0]).T.contiguous().to(torch.int16)


def write(weight: Weight, scheme: Scheme) -> dict[str, Tensor]:
    if isinstance(weight, IntGroup) and scheme.dialect == PACKED:
        return _write_packed(weight, scheme)
    if isinstance(weight, Int8Channel) and scheme.dialect == INT:
        return {"weight": weight.codes, "weight_scale": weight.scales}
    if isinstance(weight, Fp8Tensor | Fp8Channel | Fp8Block) and scheme.dialect == FLOAT:
        scales = weight.scales.reshape(1) if isinstance(weight, Fp8Tensor) else weight.scales
        tensors = {"weight": weight.codes, "weight_scale": scales}
        static = weight.tensors().get("input_scale")
        return tensors if static is None else tensors | {"input_scale": static.reshape(1)}
    raise FormatError(f"compressed-tensors {scheme.dialect} does not hold {type(weight).__name__}")


def _write_packed(weight: IntGroup, scheme: Scheme) -> dict[str, Tensor]:
    if weight.codes.dim() != 2:
        raise FormatError("compressed-tensors holds one expert per name: write experts one by one")
    tensors = {
        "weight_packed": weight.codes,
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
    if not scheme.symmetric:
        tensors["weight_zero_point"] = _write_zeros(weight)
    elif weight.zeros is not None and bool((weight.zeros != weight.mid).any()):
        raise FormatError("symmetric compressed-tensors has no zeros, this weight does: write it asymmetric")
    if weight.g_idx is not None:
        tensors["weight_g_idx"] = weight.g_idx.reshape(-1)
    return tensors


def _write_zeros(weight: IntGroup) -> Tensor:
    zeros, top = weight.filled_zeros(), (1 << weight.bits) - 1
    wrong = int(((zeros < 0) | (zeros > top)).sum())
    if wrong:
        raise FormatError(f"compressed-tensors stores zeros 0..{top}; {wrong} groups lie outside: write gptq (v1)")
    return pack(zeros.to(torch.uint8).T.contiguous(), weight.bits).T.contiguous()


def manifest(scheme: Scheme) -> dict[str, Any]:
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "float" if scheme.dialect == FLOAT else "int",
        "symmetric": scheme.symmetric,
        "strategy": _strategy(scheme),
        "group_size": scheme.group,
        "block_structure": list(scheme.block) if scheme.block else None,
        "actorder": "group" if scheme.act_order else None,
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "format": scheme.dialect,
        "weights": weights,
        "input_activations": _inputs(scheme),
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.dialect,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(scheme.skip),
        "kv_cache_scheme": None,
        "version": VERSION,
    }


def _strategy(scheme: Scheme) -> str:
    if scheme.weight == "int":
        return "channel" if scheme.group is None else "group"
    return scheme.weight.rpartition("-")[2]


def _inputs(scheme: Scheme) -> dict[str, Any] | None:
    if scheme.activation == "none":
        return None
    kind, strategy = scheme.activation.split("-")
    return {
        "num_bits": 8,
        "type": "int" if kind == "int8" else "float",
        "symmetric": True,
        "strategy": "tensor" if strategy == "static" else strategy,
        "dynamic": strategy != "static",
        "group_size": 128 if strategy == "group" else None,
    }
