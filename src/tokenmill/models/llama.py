"""Llama 1, 2, 3, 3.1 and 3.2, and every model that calls itself LlamaForCausalLM (Yi, Vicuna, ...)."""

from __future__ import annotations

from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.layers.attention import AttentionArch, AttentionNames, Gqa, SeparateQKV
from tokenmill.layers.mlp import Gated, MlpArch, MlpNames
from tokenmill.models.family import Block, DecoderArch, Family, Names, QuantGroup, expect_positive
from tokenmill.models.reading import head_dim, kv_heads, rope_facts

LLAMA_ATTENTION = AttentionNames(
    norm="input_layernorm",
    qkv=SeparateQKV("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
)
LLAMA_NAMES = Names(
    embedding="model.embed_tokens",
    norm="model.norm",
    head="lm_head",
    layer="model.layers.{}.",
    attention=LLAMA_ATTENTION,
    mlp=MlpNames("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)

LLAMA_QUANT = (
    QuantGroup("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    QuantGroup("self_attn.v_proj", ("self_attn.o_proj",)),
    QuantGroup("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    QuantGroup("mlp.up_proj", ("mlp.down_proj",)),
)

LLAMA_TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 512,
}


def decoder_arch(c: dict[str, Any], *, qkv_bias: bool = False, out_bias: bool = False, mlp_bias: bool = False,
                 tied: bool = False) -> DecoderArch:
    """A Llama-shaped decoder from the keys all such configs share; biases and the tied default are the family's."""
    expect_positive(
        c, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings",
    )
    if c.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"config.json: hidden_act is {c['hidden_act']!r}; only silu is served for this family")
    K = head_dim(c)
    rope = rope_facts(c, K)
    attention = AttentionArch(c["hidden_size"], c["num_attention_heads"], kv_heads(c), K, qkv_bias, out_bias)
    # A yarn config may state the trained length only; what it stretches to is served.
    longest = int(rope.original_max_position * rope.factor) if rope.kind == "yarn" else 0
    return DecoderArch(
        vocab_size=c["vocab_size"],
        hidden_size=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        norm_eps=float(c.get("rms_norm_eps", 1e-6)),
        attention=attention,
        mlp=MlpArch(c["hidden_size"], c["intermediate_size"], mlp_bias),
        rope=rope,
        max_model_tokens=max(c["max_position_embeddings"], longest),
        tied=bool(c.get("tie_word_embeddings", tied)),
    )


def arch(c: dict[str, Any]) -> DecoderArch:
    bias = bool(c.get("attention_bias", False))
    return decoder_arch(c, qkv_bias=bias, out_bias=bias, mlp_bias=bool(c.get("mlp_bias", False)))


def block(a: DecoderArch) -> Block:
    return Block(Gqa(), Gated())


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    arch=arch,
    block=block,
    names=LLAMA_NAMES,
    quant=LLAMA_QUANT,
    tiny=LLAMA_TINY,
    chat="llama3",
    tools="llama3",
)
