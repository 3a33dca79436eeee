"""GLM-4-0414 (9B, 32B): GLM-4 with a norm behind both halves of a layer."""

from __future__ import annotations

from dataclasses import replace

from tokenmill.layers.attention import AttentionNames
from tokenmill.layers.mlp import PackedMlpNames
from tokenmill.models import glm

NAMES = replace(
    glm.NAMES,
    attention=AttentionNames(
        "input_layernorm", glm.PAIRS, "self_attn.o_proj", post_norm="post_self_attn_layernorm"
    ),
    mlp=PackedMlpNames("post_attention_layernorm", "mlp.gate_up_proj", "mlp.down_proj", "post_mlp_layernorm"),
)

FAMILY = replace(
    glm.FAMILY,
    name="glm4",
    architectures=("Glm4ForCausalLM",),
    names=NAMES,
    quant=(),
    tiny={**glm.TINY, "architectures": ["Glm4ForCausalLM"], "attention_bias": False, "model_type": "glm4"},
)
