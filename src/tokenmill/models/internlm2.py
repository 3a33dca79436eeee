"""InternLM2, InternLM2.5 and InternLM2-Math-Plus: Llama with grouped wqkv and other names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenmill.layers.attention import AttentionNames, Gqa, GroupedQKV
from tokenmill.layers.mlp import Gated, MlpNames
from tokenmill.models.family import Block, DecoderArch, Family, Names, QuantGroup, Twin
from tokenmill.models.llama import decoder_arch

NAMES = Names(
    embedding="model.tok_embeddings",
    norm="model.norm",
    head="output",
    layer="model.layers.{}.",
    attention=AttentionNames("attention_norm", GroupedQKV("attention.wqkv"), "attention.wo"),
    mlp=MlpNames("ffn_norm", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
)

QUANT = (
    QuantGroup("attention_norm", ("attention.wqkv",)),
    QuantGroup("attention.wqkv", ("attention.wo",)),
    QuantGroup("ffn_norm", ("feed_forward.w1", "feed_forward.w3")),
    QuantGroup("feed_forward.w3", ("feed_forward.w2",)),
)

TINY: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "eager",
    "auto_map": {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
    },
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "max_position_embeddings": 256,
    "model_type": "internlm2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.41.0",
    "use_cache": True,
    "vocab_size": 512,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    bias = bool(c.get("bias", False))
    return decoder_arch(c, qkv_bias=bias, out_bias=bias)


def block(a: DecoderArch) -> Block:
    return Block(Gqa(), Gated())


# Places of a linear within a layer here, and in transformers' Llama.
TWIN_NAMES = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "model.tok_embeddings": "model.embed_tokens",
    "output.": "lm_head.",
}


def twin_config(c: dict[str, Any]) -> dict[str, Any]:
    """The Llama that computes the same."""
    kept = {key: value for key, value in c.items() if key not in ("auto_map", "bias", "architectures")}
    return {**kept, "model_type": "llama", "attention_bias": bool(c.get("bias", False)), "mlp_bias": False}


def twin_tensors(tensors: dict[str, Tensor], c: dict[str, Any]) -> dict[str, Tensor]:
    """Llama's names; wqkv's rows seen as (kv heads, g + 2, head dim) and taken apart."""
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        prefix, found, suffix = name.partition("attention.wqkv.")
        if found:
            for letter, part in zip("qkv", _ungroup(value, c), strict=True):
                named[f"{prefix}self_attn.{letter}_proj.{suffix}"] = part
        else:
            here = next((key for key in TWIN_NAMES if key in name), "")
            named[name.replace(here, TWIN_NAMES[here]) if here else name] = value
    return named


def _ungroup(rows: Tensor, c: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v rows of wqkv's rows (or of its bias)."""
    G = c["num_key_value_heads"]
    g = c["num_attention_heads"] // G
    grouped = rows.view(G, g + 2, -1, *rows.shape[1:])
    return grouped[:, :g].flatten(0, 2), grouped[:, g].flatten(0, 1), grouped[:, g + 1].flatten(0, 1)


FAMILY = Family(
    name="internlm2",
    architectures=("InternLM2ForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=QUANT,
    tiny=TINY,
    chat="internlm2",
    tools="internlm2",
    twin=Twin(twin_config, twin_tensors),
)
