"""Qwen1.5, Qwen2 and Qwen2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.models.family import DecoderArch, Family
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_QUANT, LLAMA_TINY, block, decoder_arch

TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in ("attention_bias", "mlp_bias", "pretraining_tp")},
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 64,
    "use_sliding_window": False,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    return with_late_windows(decoder_arch(c, qkv_bias=True), c)


def with_late_windows(a: DecoderArch, c: dict[str, Any]) -> DecoderArch:
    """`sliding_window` counts only with `use_sliding_window`, and only from layer `max_window_layers` on."""
    if not c.get("use_sliding_window") or not c.get("sliding_window"):
        return a
    first = int(c.get("max_window_layers", 0))
    window = int(c["sliding_window"])
    return replace(a, windows=tuple(window if index >= first else None for index in range(a.num_layers)))


FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    arch=arch,
    block=block,
    names=LLAMA_NAMES,
    quant=LLAMA_QUANT,
    tiny=TINY,
    chat="qwen2d5",
    tools="qwen2d5",
)
