"""ChatGLM2, ChatGLM3 and GLM-4-9B in their authors' form: GLM-4 under other names, q, k and v in one linear."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.layers.attention import AttentionNames, PackedQKV
from tokenmill.layers.mlp import PackedMlpNames
from tokenmill.models import glm
from tokenmill.models.family import DecoderArch, Family, Names, QuantGroup, Twin, expect_positive

NAMES = Names(
    embedding="transformer.embedding.word_embeddings",
    norm="transformer.encoder.final_layernorm",
    head="transformer.output_layer",
    layer="transformer.encoder.layers.{}.",
    attention=AttentionNames(
        "input_layernorm", glm.NeighbourPairs(PackedQKV("self_attention.query_key_value")), "self_attention.dense"
    ),
    mlp=PackedMlpNames("post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
)

QUANT = (
    QuantGroup("input_layernorm", ("self_attention.query_key_value",)),
    QuantGroup("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
    QuantGroup("mlp.dense_h_to_4h", ("mlp.dense_4h_to_h",)),
)

TINY: dict[str, Any] = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "eos_token_id": 2,
    "ffn_hidden_size": 256,
    "hidden_size": 128,
    "kv_channels": 32,
    "layernorm_epsilon": 1e-05,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 2,
    "original_rope": True,
    "pad_token_id": 0,
    "padded_vocab_size": 512,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 50,
    "seq_length": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 512,
}

SERVED = {
    "add_bias_linear": False, "apply_residual_connection_post_layernorm": False, "original_rope": True,
    "post_layer_norm": True, "rmsnorm": True,
}  # fmt: skip
ROPE_BASE = 10000.0


def arch(c: dict[str, Any]) -> DecoderArch:
    expect_positive(c, "padded_vocab_size", "num_layers", "kv_channels", "seq_length", "ffn_hidden_size")
    for key, value in SERVED.items():
        if c.get(key, value) != value:
            raise ConfigError(f"config.json: {key} is {c[key]!r}; only {value} is served for this family")
    return glm.arch(plain_config(c))


def plain_config(c: dict[str, Any]) -> dict[str, Any]:
    """The keys that GLM has for the same facts."""
    heads = c["num_attention_heads"]
    return {
        "vocab_size": c["padded_vocab_size"],
        "hidden_size": c["hidden_size"],
        "intermediate_size": c["ffn_hidden_size"],
        "num_hidden_layers": c["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": c["multi_query_group_num"] if c.get("multi_query_attention") else heads,
        "head_dim": c["kv_channels"],
        "max_position_embeddings": c["seq_length"],
        "rms_norm_eps": c["layernorm_epsilon"],
        "rope_theta": ROPE_BASE * float(c.get("rope_ratio") or 1.0),
        "attention_bias": bool(c.get("add_qkv_bias", False)),
        "tie_word_embeddings": bool(c.get("tie_word_embeddings", False)),
    }


# Places here, and in transformers' GLM.
TWIN_NAMES = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.output_layer": "lm_head",
    "transformer.encoder.layers": "model.layers",
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}


def twin_config(c: dict[str, Any]) -> dict[str, Any]:
    """The GLM that computes the same."""
    return {**plain_config(c), "model_type": "glm", "partial_rotary_factor": 0.5, "pad_token_id": c.get("pad_token_id")}


def twin_tensors(tensors: dict[str, Tensor], c: dict[str, Any]) -> dict[str, Tensor]:
    """GLM's names; q, k and v apart."""
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for ours, theirs in TWIN_NAMES.items():
            name = name.replace(ours, theirs)
        prefix, found, suffix = name.partition("self_attention.query_key_value.")
        if not found:
            named[name] = value
            continue
        kv = plain_config(c)["num_key_value_heads"] * c["kv_channels"]
        parts = value.split([len(value) - 2 * kv, kv, kv])  # type: ignore[no-untyped-call]
        named |= {f"{prefix}self_attn.{x}_proj.{suffix}": part for x, part in zip("qkv", parts, strict=True)}
    return named


FAMILY = Family(
    name="chatglm",
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    arch=arch,
    block=glm.block,
    names=NAMES,
    quant=QUANT,
    tiny=TINY,
    chat="chatglm3",
    twin=Twin(twin_config, twin_tensors),
)
