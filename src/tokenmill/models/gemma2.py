"""Gemma 2: norms before and behind both halves of a layer, soft caps, every second layer with a window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.kernels.ops import HeadParts, Reduce
from tokenmill.layers.embedding import Embedding, build_head
from tokenmill.layers.linear import Loader
from tokenmill.layers.mlp import MlpNames
from tokenmill.models import gemma
from tokenmill.models.family import DecoderArch, Family
from tokenmill.models.gemma import NormsFromOne, block
from tokenmill.models.llama import LLAMA_ATTENTION, LLAMA_NAMES

NAMES = replace(
    LLAMA_NAMES,
    attention=replace(LLAMA_ATTENTION, post_norm="post_attention_layernorm"),
    mlp=MlpNames("pre_feedforward_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
                 "post_feedforward_layernorm"),
)  # fmt: skip

TINY: dict[str, Any] = {
    **gemma.TINY,
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "model_type": "gemma2",
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 48,
    "sliding_window": 32,
}


@dataclass(frozen=True, slots=True)
class Capped:
    """Logits as ranks gathered them, x -> c tanh(x / c) in fp32."""

    gather: Reduce
    cap: float

    def __call__(self, logits_RV: Tensor) -> Tensor:
        return self.cap * torch.tanh(self.gather(logits_RV).float() / self.cap)


def arch(c: dict[str, Any]) -> DecoderArch:
    """Without `layer_types` the layers with an even index have the window."""
    a = gemma.arch(c)
    kinds = c.get("layer_types") or ["full_attention" if i % 2 else "sliding_attention" for i in range(a.num_layers)]
    return replace(capped(a, c), windows=windows(kinds, c))


def capped(a: DecoderArch, c: dict[str, Any]) -> DecoderArch:
    """With the caps, and scores scaled by a number of their own."""
    scale = float(c.get("query_pre_attn_scalar") or a.gqa.head_dim) ** -0.5
    attention = replace(a.gqa, scale=scale, softcap=c.get("attn_logit_softcapping") or None)
    return replace(a, attention=attention, logit_cap=c.get("final_logit_softcapping") or None)


def windows(kinds: list[str], c: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(int(c["sliding_window"]) if kind == "sliding_attention" else None for kind in kinds)


def head(loader: Loader, name: str, embedding: Embedding, arch: DecoderArch) -> HeadParts:
    parts = build_head(loader, name, embedding, arch.tied)
    return parts if arch.logit_cap is None else replace(parts, gather=Capped(parts.gather, arch.logit_cap))


FAMILY = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=(),
    tiny=TINY,
    chat="gemma",
    head=head,
    source=NormsFromOne,
)
