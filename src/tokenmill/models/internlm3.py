"""InternLM3: Llama's tensors with a dynamic rope; biases by its own two keys."""

from __future__ import annotations

from typing import Any

from tokenmill.models.family import DecoderArch, Family
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_QUANT, LLAMA_TINY, block, decoder_arch

TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in ("attention_bias", "mlp_bias", "pretraining_tp")},
    "architectures": ["InternLM3ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_internlm3.InternLM3Config",
        "AutoModel": "modeling_internlm3.InternLM3Model",
        "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM",
    },
    "bias": False,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "model_type": "internlm3",
    "qkv_bias": False,
    "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
    "rope_theta": 50000000,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    bias = bool(c.get("bias", False))
    return decoder_arch(c, qkv_bias=bool(c.get("qkv_bias", False)), out_bias=bias, mlp_bias=bias)


FAMILY = Family(
    name="internlm3",
    architectures=("InternLM3ForCausalLM",),
    arch=arch,
    block=block,
    names=LLAMA_NAMES,
    quant=LLAMA_QUANT,
    tiny=TINY,
    chat="internlm2",
    tools="internlm2",
)
