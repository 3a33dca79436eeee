"""Baichuan 1 and 2: one linear for q, k and v; the 13B models have ALiBi instead of a rotation; Baichuan 2 normalises
the rows of its head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.kernels.ops import HeadParts
from tokenmill.layers.attention import AttentionNames, PackedQKV
from tokenmill.layers.embedding import Embedding, head_parts
from tokenmill.layers.linear import Loader, Part, read_part
from tokenmill.layers.rope import RopeFacts
from tokenmill.models.family import DecoderArch, Family, QuantGroup, Twin
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_TINY, block, decoder_arch
from tokenmill.weights.classes import Dense

NAMES = replace(
    LLAMA_NAMES, attention=AttentionNames("input_layernorm", PackedQKV("self_attn.W_pack"), "self_attn.o_proj")
)

QUANT = (
    QuantGroup("input_layernorm", ("self_attn.W_pack",)),
    QuantGroup("self_attn.W_pack", ("self_attn.o_proj",)),
    QuantGroup("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    QuantGroup("mlp.up_proj", ("mlp.down_proj",)),
)

LEFT_OUT = ("attention_bias", "mlp_bias", "pretraining_tp", "num_key_value_heads", "rope_scaling", "rope_theta")
TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in LEFT_OUT},
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    },
    "max_position_embeddings": 128,
    "model_type": "baichuan",
    "rms_norm_eps": 1e-06,
    "z_loss_weight": 0,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    """The 13B models state `model_max_length` instead of `max_position_embeddings`: they have no rotation."""
    alibi = c.get("max_position_embeddings") is None
    c = {**c, "max_position_embeddings": c.get("max_position_embeddings") or c.get("model_max_length") or 4096}
    a = decoder_arch(c)
    if alibi:
        still = RopeFacts("none", 1.0, a.attention.head_dim, a.max_model_tokens)
        a = replace(a, attention=replace(a.gqa, alibi=True), rope=still)
    return a


def head(loader: Loader, name: str, embedding: Embedding, arch: DecoderArch) -> HeadParts:
    """Logits over rows of length 1 (Baichuan 2)."""
    V, D = embedding.table_VD.shape
    part = read_part(loader.source, name, (V, D), V)
    rows_VD = functional.normalize(part.weight.dequantize(torch.float32))
    return head_parts(loader, Part(Dense(rows_VD), None, V))


def twin_config(c: dict[str, Any]) -> dict[str, Any]:
    """The Llama that computes the same, for models that have a rotation."""
    kept = {key: value for key, value in c.items() if key not in ("auto_map", "z_loss_weight")}
    return {**kept, "model_type": "llama", "attention_bias": False, "mlp_bias": False}


def twin_tensors(tensors: dict[str, Tensor], c: dict[str, Any]) -> dict[str, Tensor]:
    """Llama's names; W_pack's rows in thirds, the head's rows of length 1."""
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        prefix, found, suffix = name.partition("W_pack.")
        if found:
            named |= {f"{prefix}{x}_proj.{suffix}": part for x, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            named[name] = value / value.norm(dim=1, keepdim=True) if name == "lm_head.weight" else value
    return named


FAMILY = Family(
    name="baichuan",
    architectures=("BaichuanForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=QUANT,
    tiny=TINY,
    chat="baichuan2",
    twin=Twin(twin_config, twin_tensors),
    head=head,
)
