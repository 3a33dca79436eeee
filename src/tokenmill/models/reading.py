"""Reading config.json, whatever its age: nested text configs, both spellings of rope and dtype, derived sizes.

transformers before 5 wrote `rope_theta`, `rope_scaling` (`type`, later `rope_type`) and `torch_dtype`; since 5 it
writes `rope_parameters` and `dtype`. Both are read; where both are there, the new one wins.
"""

from __future__ import annotations

import math
from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.layers.rope import KINDS, RopeFacts

NESTED = ("text_config", "llm_config", "language_config")
DTYPES = {"float16": "float16", "half": "float16", "bfloat16": "bfloat16", "float32": "float32", "float": "float32"}
ROPE_SPELLINGS = {
    "origin": "default", "su": "longrope", "ntk": "dynamic", "none": "default",
    "mrope": "default",
}  # fmt: skip
_NUMBERS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config: itself, or the nested one of a multimodal model."""
    for key in NESTED:
        if isinstance(config.get(key), dict):
            return dict(config[key])
    return config


def architecture(config: dict[str, Any]) -> str:
    """The class name that decides the family."""
    names = config.get("architectures") or []
    if names:
        return str(names[0])
    auto = (config.get("auto_map") or {}).get("AutoModelForCausalLM", "")
    return str(auto).rpartition(".")[2]


def dtype_name(config: dict[str, Any]) -> str:
    """float16, bfloat16 or float32; float16 where the config says nothing."""
    raw = str(config.get("dtype") or config.get("torch_dtype") or "float16").removeprefix("torch.")
    if raw not in DTYPES:
        raise ConfigError(f"config.json: dtype is {raw!r}; it must be one of {', '.join(sorted(set(DTYPES.values())))}")
    return DTYPES[raw]


def head_dim(config: dict[str, Any]) -> int:
    """`head_dim` where present, else hidden size over heads."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if config.get("head_dim"):
        return int(config["head_dim"])
    if hidden % heads:
        raise ConfigError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return int(hidden // heads)


def kv_heads(config: dict[str, Any]) -> int:
    heads = config["num_attention_heads"]
    kv = config.get("num_key_value_heads") or heads
    if heads % kv:
        raise ConfigError(f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv}")
    return int(kv)


def token_ids(value: Any) -> tuple[int, ...]:
    """An id or a list of ids, as eos_token_id may be."""
    if value is None:
        return ()
    return tuple(int(i) for i in value) if isinstance(value, list) else (int(value),)


def rope_facts(config: dict[str, Any], K: int) -> RopeFacts:
    """The rotation a config describes. ConfigError names a kind or a key that cannot be served."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    kind = ROPE_SPELLINGS.get(kind, kind)
    if kind not in KINDS:
        raise ConfigError(f"config.json: rope type is {kind!r}; it must be one of {', '.join(KINDS)}")
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    if partial != 1.0:
        raise ConfigError(f"config.json: partial_rotary_factor is {partial}; only whole heads are rotated here (1.0)")
    P = int(config["max_position_embeddings"])
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or P
    numbers = {ours: float(rope[key]) for key, ours in _NUMBERS.items() if rope.get(key) is not None}
    if kind in ("yarn", "longrope") and "factor" not in numbers:
        numbers["factor"] = P / original
    sections = tuple(int(x) for x in rope.get("mrope_section") or ())
    _check_rope(kind, numbers, rope, K)
    return RopeFacts(
        kind=kind,
        theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        head_dim=K,
        max_position=P,
        original_max_position=int(original),
        truncate=bool(rope.get("truncate", True)),
        rotated_dim=0,
        sections=sections,
        short_factor=tuple(float(x) for x in rope.get("short_factor") or ()),
        long_factor=tuple(float(x) for x in rope.get("long_factor") or ()),
        **numbers,
    )


def _check_rope(kind: str, numbers: dict[str, float], rope: dict[str, Any], K: int) -> None:
    if kind in ("linear", "dynamic", "llama3") and "factor" not in numbers:
        raise ConfigError(f"config.json: rope type {kind} needs a factor")
    bad = {key: value for key, value in numbers.items() if not math.isfinite(value) or value < 0}
    if bad or numbers.get("factor", 1.0) <= 0:
        raise ConfigError(f"config.json: rope numbers must be finite and positive; got {bad or numbers}")
    sections = rope.get("mrope_section") or ()
    if sections and (len(sections) != 3 or sum(sections) != K // 2):
        raise ConfigError(f"config.json: mrope_section is {sections}; it must be three numbers that add up to {K // 2}")
    if kind == "longrope":
        for key in ("short_factor", "long_factor"):
            if len(rope.get(key) or ()) != K // 2:
                raise ConfigError(f"config.json: rope {key} must have {K // 2} numbers, half of head_dim {K}")
