"""InternLM 7B and 20B (first generation): Llama with its own rope keys, and perhaps biases on q, k, v and o."""

from __future__ import annotations

from typing import Any

from tokenmill.models.family import DecoderArch, Family, Twin
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_QUANT, LLAMA_TINY, block, decoder_arch

TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in ("attention_bias", "mlp_bias", "pretraining_tp")},
    "architectures": ["InternLMForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_internlm.InternLMConfig",
        "AutoModel": "modeling_internlm.InternLMForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm.InternLMForCausalLM",
    },
    "bias": True,
    "max_position_embeddings": 64,
    "model_type": "internlm",
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rotary": {"base": 10000, "type": "dynamic"},
}


def rope_keys(c: dict[str, Any]) -> dict[str, Any]:
    """`rotary` in the words of other families. Early revisions have no such key: a plain rotation."""
    rotary = c.get("rotary") or {}
    scaling = None
    if rotary.get("type") == "dynamic":
        scaling = {"type": "dynamic", "factor": float(rotary.get("scaling_factor", 1.0))}
    return {"rope_theta": float(rotary.get("base", 10000)), "rope_scaling": c.get("rope_scaling") or scaling}


def arch(c: dict[str, Any]) -> DecoderArch:
    bias = bool(c.get("bias", True))
    return decoder_arch({**c, **rope_keys(c)}, qkv_bias=bias, out_bias=bias)


def twin_config(c: dict[str, Any]) -> dict[str, Any]:
    """The Llama that computes the same, with the same names."""
    kept = {key: value for key, value in c.items() if key not in ("auto_map", "bias", "rotary")}
    bias = bool(c.get("bias", True))
    return {**kept, **rope_keys(c), "model_type": "llama", "attention_bias": bias, "mlp_bias": False}


FAMILY = Family(
    name="internlm",
    architectures=("InternLMForCausalLM",),
    arch=arch,
    block=block,
    names=LLAMA_NAMES,
    quant=LLAMA_QUANT,
    tiny=TINY,
    chat="internlm",
    twin=Twin(twin_config, lambda tensors, c: tensors),
)
