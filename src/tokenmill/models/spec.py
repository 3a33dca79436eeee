"""Pure facts of a model from its folder's config.json: no weights are read, no device is touched."""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from tokenmill import find
from tokenmill.config import ModelConfig
from tokenmill.errors import ConfigError, FormatError
from tokenmill.layers.mla import MlaArch
from tokenmill.layers.rope import RopeFacts
from tokenmill.models.contract import AttentionGroup, ModelSpec, VisionSpec
from tokenmill.models.family import DecoderArch, Family, mlp_of
from tokenmill.models.multimodal import Multimodal
from tokenmill.models.reading import architecture, dtype_name, text_config, token_ids

PACKAGE = "tokenmill.models"


@cache
def families() -> dict[str, Family]:
    """Every family there is, by name. A module of this room that holds a FAMILY is one."""
    found = (getattr(find.load(PACKAGE, name), "FAMILY", None) for name in find.names(PACKAGE))
    return {family.name: family for family in found if family is not None}


@cache
def multimodals() -> dict[str, Multimodal]:
    """Every family with a vision tower, by name. A module of this room that holds a MULTIMODAL is one."""
    found = (getattr(find.load(PACKAGE, name), "MULTIMODAL", None) for name in find.names(PACKAGE))
    return {joined.name: joined for joined in found if joined is not None}


def family_names() -> list[str]:
    """What `make-tiny` takes."""
    return sorted({**families(), **multimodals()})


def find_multimodal(config: dict[str, Any]) -> Multimodal | None:
    """The record of a whole config.json; None where there is no vision tower."""
    wanted = architecture(config)
    return next((joined for joined in multimodals().values() if wanted in joined.architectures), None)


def find_family(config: dict[str, Any]) -> Family:
    """The family of a (text) config. ConfigError names the nearest one that is served."""
    wanted = architecture(config)
    for family in families().values():
        if wanted in family.architectures:
            return family
    if not wanted and config.get("model_type") in families():
        return families()[config["model_type"]]
    known = [name for family in families().values() for name in family.architectures]
    near = difflib.get_close_matches(wanted, known, 1, 0.0)
    raise ConfigError(
        f"config.json: architecture {wanted or 'none'!r} is not served; the nearest is {near[0]}. "
        f"Served: {', '.join(sorted(known))}"
    )


def read_config(model: str | Path | dict[str, Any], config: ModelConfig = ModelConfig()) -> dict[str, Any]:
    """A folder's config.json (or the dict itself) with the user's overrides in it, nested text config taken out."""
    merged = read_whole(model, config)
    joined = find_multimodal(merged)
    if joined is not None:
        inner = joined.language(merged)
        return _merge(inner, _inherited({**merged, "text_config": inner}))
    return _merge(text_config(merged), {} if merged is text_config(merged) else _inherited(merged))


def read_whole(model: str | Path | dict[str, Any], config: ModelConfig = ModelConfig()) -> dict[str, Any]:
    """All of config.json, with the user's overrides in it."""
    raw = model if isinstance(model, dict) else _read_json(Path(model) / "config.json")
    return _merge(raw, config.hf_overrides)


def read_arch(model: str | Path | dict[str, Any], config: ModelConfig = ModelConfig()) -> tuple[Family, DecoderArch]:
    """The family and its numbers, with `rope_scaling_factor` and `use_logn_attn` applied."""
    raw = read_config(model, config)
    family = find_family(raw)
    try:
        arch = family.arch(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config.json cannot be read as {family.name}: {error!r}") from error
    return family, _override(arch, raw, config)


def read_spec(model: str | Path | dict[str, Any], config: ModelConfig = ModelConfig()) -> ModelSpec:
    """What a runner and a memory plan need to know, of a folder or of a config dict."""
    raw = read_config(model, config)
    family, arch = read_arch(model, config)
    a = arch.attention
    vision = None if config.language_only else _vision(read_whole(model, config))
    return ModelSpec(
        family=family.name,
        vocab_size=arch.vocab_size,
        hidden_size=arch.hidden_size,
        num_layers=arch.num_layers,
        num_heads=a.num_heads,
        num_kv_heads=a.num_kv_heads,
        head_dim=a.head_dim,
        max_model_tokens=config.max_model_tokens or arch.max_model_tokens,
        dtype=dtype_name(raw),
        groups=tuple(
            AttentionGroup("full" if window is None else f"window {window}", layers, window)
            for window, layers in arch.groups
        ),
        rope=arch.rope.base_rule(),
        linear_params=_linear_params(family, arch),
        other_params=_other_params(family, arch) + (vision.params if vision else 0),
        eos_ids=_eos_ids(raw, model),
        bos_id=next(iter(token_ids(raw.get("bos_token_id"))), None),
        logn=arch.logn_tokens is not None,
        latent=isinstance(a, MlaArch),
        generates=family.score is None,
        vision=vision,
    )


def _vision(config: dict[str, Any]) -> VisionSpec | None:
    joined = find_multimodal(config)
    try:
        return None if joined is None else joined.vision(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config.json: the vision tower cannot be read: {error!r}") from error


def layer_linears(family: Family, arch: DecoderArch, index: int) -> dict[str, tuple[int, int]]:
    """Linears of a decoder layer by name within it, with their (N, M), as the checkpoint holds them."""
    mlp, attention = mlp_of(family, arch, index), family.names.attention
    return {**attention.linears(arch.attention), **mlp.names.shapes(mlp.arch)}  # type: ignore[arg-type]


def layer_plain(family: Family, arch: DecoderArch, index: int) -> dict[str, tuple[int, ...]]:
    """Norms, promised biases and what else is never quantized in a decoder layer, by full name, with their shapes."""
    mlp, attention = mlp_of(family, arch, index), family.names.attention
    norms = {f"{name}.weight": (arch.hidden_size,) for name in (mlp.names.norm, mlp.names.post_norm) if name}
    return {**attention.plain(arch.attention), **norms, **mlp.names.plain(mlp.arch)}  # type: ignore[arg-type]


def _linear_params(family: Family, arch: DecoderArch) -> int:
    layers = range(arch.num_layers)
    return sum(prod(shape) for index in layers for shape in layer_linears(family, arch, index).values())


def _other_params(family: Family, arch: DecoderArch) -> int:
    layers = range(arch.num_layers)
    plain = sum(prod(shape) for index in layers for shape in layer_plain(family, arch, index).values())
    ends = sum(prod(shape) for shape in end_tensors(family, arch).values())
    return arch.vocab_size * arch.hidden_size + plain + arch.hidden_size + ends


def end_tensors(family: Family, arch: DecoderArch) -> dict[str, tuple[int, ...]]:
    """What stands behind the last norm, by full name: the head where it is not the embedding, or a score."""
    if family.score is not None:
        return family.score.shapes(arch.hidden_size)
    return {} if arch.tied else {f"{family.names.head}.weight": (arch.vocab_size, arch.hidden_size)}


def _override(arch: DecoderArch, raw: dict[str, Any], config: ModelConfig) -> DecoderArch:
    """LMDeploy's switches: a rope factor above 0 forces dynamic NTK; LogN by flag."""
    if config.rope_scaling_factor > 0:
        P = arch.rope.max_position
        facts = RopeFacts("dynamic", arch.rope.theta, arch.rope.head_dim, P, factor=config.rope_scaling_factor)
        arch = replace(arch, rope=replace(facts, sections=arch.rope.sections))
    if config.use_logn_attn is not None:
        trained = int(raw.get("seq_length") or arch.rope.max_position)
        arch = replace(arch, logn_tokens=trained if config.use_logn_attn else None)
    if (arch.logn_tokens is not None) != arch.attention.logn:
        arch = replace(arch, attention=replace(arch.attention, logn=arch.logn_tokens is not None))
    return arch


def _eos_ids(raw: dict[str, Any], model: str | Path | dict[str, Any]) -> tuple[int, ...]:
    """Union of config's and generation_config's; the tokenizer's and the template's are added above."""
    ids = token_ids(raw.get("eos_token_id"))
    if not isinstance(model, dict):
        path = Path(model) / "generation_config.json"
        ids += token_ids(_read_json(path).get("eos_token_id")) if path.is_file() else ()
    return tuple(dict.fromkeys(ids))


def _inherited(outer: dict[str, Any]) -> dict[str, Any]:
    """Keys a nested text config takes from outside where it lacks them."""
    inner = text_config(outer)
    keys = ("torch_dtype", "dtype", "eos_token_id", "bos_token_id", "tie_word_embeddings")
    return {key: outer[key] for key in keys if key in outer and key not in inner}


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path.parent.name} has no {path.name}: give a checkpoint folder") from error
    except ValueError as error:
        raise FormatError(f"{path.name} is not valid JSON: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} must hold a JSON object, not {type(value).__name__}")
    return value
