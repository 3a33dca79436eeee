"""Gemma 3, its language model: Gemma 2 without caps, with normed heads, and another rotation in window layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.layers.attention import Gqa
from tokenmill.models import gemma, gemma2
from tokenmill.models.family import Block, DecoderArch, Family
from tokenmill.models.gemma import GeluGated, NormsFromOne
from tokenmill.models.llama import LLAMA_ATTENTION
from tokenmill.models.reading import rope_facts

ATTENTION = replace(
    LLAMA_ATTENTION, post_norm="post_attention_layernorm", q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"
)
NAMES = replace(gemma2.NAMES, attention=ATTENTION)

CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
TINY: dict[str, Any] = {
    **{key: value for key, value in gemma2.TINY.items() if key not in CAPS},
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 3,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "rope_theta": 1000000.0,
    "sliding_window_pattern": 2,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    """Without `layer_types` every `sliding_window_pattern`-th layer (6th) sees everything."""
    kinds_of_rope = c.get("rope_parameters") or {}
    full = kinds_of_rope.get("full_attention") or {"rope_theta": c.get("rope_theta") or 1e6}
    local = kinds_of_rope.get("sliding_attention") or {"rope_theta": c.get("rope_local_base_freq") or 1e4}
    a = gemma2.capped(gemma.arch({**c, "rope_parameters": full}), c)
    pattern = int(c.get("sliding_window_pattern") or 6)
    kinds = c.get("layer_types") or [
        "sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(a.num_layers)
    ]
    near = rope_facts({**c, "rope_parameters": local, "rope_scaling": None}, a.gqa.head_dim)
    return replace(a, windows=gemma2.windows(kinds, c), window_rope=near)


def block(a: DecoderArch) -> Block:
    return Block(Gqa(qk_norm=True), GeluGated())


FAMILY = Family(
    name="gemma3",
    architectures=("Gemma3ForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=(),
    tiny=TINY,
    chat="gemma",
    head=gemma2.head,
    source=NormsFromOne,
)
