"""Qwen v1: one linear for q, k and v with a bias, an MLP whose w2 is the gate, its own NTK rope and LogN attention.

`intermediate_size` is twice the real width of the MLP. The first release had other names for most keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.layers.attention import AttentionNames, PackedQKV
from tokenmill.layers.mlp import MlpNames
from tokenmill.layers.rope import RopeFacts
from tokenmill.models.family import DecoderArch, Family, Names, QuantGroup, Twin
from tokenmill.models.llama import block, decoder_arch

NAMES = Names(
    embedding="transformer.wte",
    norm="transformer.ln_f",
    head="lm_head",
    layer="transformer.h.{}.",
    attention=AttentionNames("ln_1", PackedQKV("attn.c_attn"), "attn.c_proj"),
    mlp=MlpNames("ln_2", "mlp.w2", "mlp.w1", "mlp.c_proj"),
)

QUANT = (
    QuantGroup("ln_1", ("attn.c_attn",)),
    QuantGroup("attn.c_attn", ("attn.c_proj",)),
    QuantGroup("ln_2", ("mlp.w1", "mlp.w2")),
    QuantGroup("mlp.w1", ("mlp.c_proj",)),
)

# Keys of the first release: what they are called now.
OLD_KEYS = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "padded_vocab_size": "vocab_size",
}

TINY: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "attn_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": False,
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "kv_channels": 32,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 256,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 64,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "torch_dtype": "float32",
    "use_cache": True,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": 512,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    c = {OLD_KEYS.get(key, key): value for key, value in c.items()}
    if float(c.get("rotary_pct", 1.0)) != 1.0:
        raise ConfigError(f"config.json: rotary_pct is {c['rotary_pct']}; only whole heads are rotated here (1.0)")
    trained = int(c.get("seq_length") or c["max_position_embeddings"])
    theta = float(c.get("rotary_emb_base", 10000.0))
    c |= {"head_dim": c.get("kv_channels"), "rms_norm_eps": c.get("layer_norm_epsilon", 1e-6), "rope_theta": theta}
    c |= {"intermediate_size": c["intermediate_size"] // 2, "rope_scaling": None}
    a = decoder_arch(c, qkv_bias=True)
    if c.get("use_dynamic_ntk"):
        a = replace(a, rope=RopeFacts("qwen", theta, a.attention.head_dim, trained))
    return replace(a, logn_tokens=trained if c.get("use_logn_attn") else None)


# Places of a tensor here, and in transformers' Qwen2.
TWIN_NAMES = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.norm",
    "transformer.h.": "model.layers.",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_proj": "mlp.down_proj",
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
}


def twin_config(c: dict[str, Any]) -> dict[str, Any]:
    """The Qwen2 that computes the same up to the trained length."""
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    return {
        **{key: c[key] for key in sizes},
        "model_type": "qwen2",
        "intermediate_size": c["intermediate_size"] // 2,
        "num_key_value_heads": c["num_attention_heads"],
        "rms_norm_eps": c["layer_norm_epsilon"],
        "rope_theta": float(c["rotary_emb_base"]),
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    }


def twin_tensors(tensors: dict[str, Tensor], c: dict[str, Any]) -> dict[str, Tensor]:
    """Qwen2's names; c_attn's rows in thirds."""
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for here, there in TWIN_NAMES.items():
            name = name.replace(here, there)
        prefix, found, suffix = name.partition("attn.c_attn.")
        if found:
            thirds = zip("qkv", value.chunk(3), strict=True)
            named |= {f"{prefix}self_attn.{letter}_proj.{suffix}": part for letter, part in thirds}
        else:
            named[name] = value
    return named


FAMILY = Family(
    name="qwen",
    architectures=("QWenLMHeadModel",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=QUANT,
    tiny=TINY,
    chat="qwen",
    twin=Twin(twin_config, twin_tensors),
)
