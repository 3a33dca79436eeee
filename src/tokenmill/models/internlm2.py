"""InternLM2, InternLM2.5 and InternLM2-Math-Plus: Llama with grouped wqkv and other names."""

from __future__ import annotations

from typing import Any

from tokenmill.layers.attention import AttentionNames, Gqa, GroupedQKV
from tokenmill.layers.mlp import Gated, MlpNames
from tokenmill.models.family import Block, DecoderArch, Family, Names, QuantGroup
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
)
