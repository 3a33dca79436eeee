"""Phi-3: Llama with packed q/k/v and packed gate/up; the long-context ones have longrope."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.layers.attention import AttentionNames, PackedQKV
from tokenmill.layers.mlp import PackedMlpNames
from tokenmill.models.family import DecoderArch, Family, QuantGroup
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_TINY, block, decoder_arch

NAMES = replace(
    LLAMA_NAMES,
    attention=AttentionNames("input_layernorm", PackedQKV("self_attn.qkv_proj"), "self_attn.o_proj"),
    mlp=PackedMlpNames("post_attention_layernorm", "mlp.gate_up_proj", "mlp.down_proj"),
)

QUANT = (
    QuantGroup("input_layernorm", ("self_attn.qkv_proj",)),
    QuantGroup("post_attention_layernorm", ("mlp.gate_up_proj",)),
    QuantGroup("mlp.gate_up_proj", ("mlp.down_proj",)),
)

TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in ("mlp_bias", "pretraining_tp")},
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "original_max_position_embeddings": 64,
    "pad_token_id": 2,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0 + i / 16 for i in range(16)],
        "long_factor": [2.0 + i / 4 for i in range(16)],
    },
    "sliding_window": None,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    a = decoder_arch(c)
    window = c.get("sliding_window")
    if not window or window >= a.max_model_tokens:
        return a
    return replace(a, windows=(int(window),) * a.num_layers)


FAMILY = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=QUANT,
    tiny=TINY,
    chat="phi-3",
)
