"""Qwen3 dense: Llama with a norm over every q and k head before the rotation, and heads of their own size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.layers.attention import Gqa
from tokenmill.layers.mlp import Gated
from tokenmill.models.family import Block, DecoderArch, Family
from tokenmill.models.llama import LLAMA_ATTENTION, LLAMA_NAMES, LLAMA_QUANT, LLAMA_TINY, decoder_arch
from tokenmill.models.qwen2 import with_late_windows

ATTENTION = replace(LLAMA_ATTENTION, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
NAMES = replace(LLAMA_NAMES, attention=ATTENTION)

TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in ("mlp_bias", "pretraining_tp")},
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 64,
    "max_window_layers": 2,
    "model_type": "qwen3",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    bias = bool(c.get("attention_bias", False))
    return with_late_windows(decoder_arch(c, qkv_bias=bias, out_bias=bias), c)


def block(a: DecoderArch) -> Block:
    return Block(Gqa(qk_norm=True), Gated())


FAMILY = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=LLAMA_QUANT,
    tiny=TINY,
    chat="qwen3",
    tools="qwen3",
    reasoning="think_tags",
)
