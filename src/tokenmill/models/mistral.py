"""Mistral 7B and its kin: Llama, with a sliding window on every layer in the first release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.models.family import DecoderArch, Family
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_QUANT, LLAMA_TINY, block, decoder_arch

TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in ("attention_bias", "mlp_bias", "pretraining_tp")},
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 24,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    a = decoder_arch(c)
    window = c.get("sliding_window")
    return replace(a, windows=(int(window),) * a.num_layers) if window else a


FAMILY = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    arch=arch,
    block=block,
    names=LLAMA_NAMES,
    quant=LLAMA_QUANT,
    tiny=TINY,
    chat="mistral",
    tools="mistral",
)
