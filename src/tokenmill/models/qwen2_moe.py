"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with experts, and beside them one that every token goes through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.layers.attention import Gqa
from tokenmill.layers.mlp import Gated
from tokenmill.layers.moe import Moe, MoeNames
from tokenmill.models import qwen2
from tokenmill.models.family import Block, DecoderArch, Family, expect_positive
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_QUANT
from tokenmill.models.qwen3_moe import with_experts

NAMES = replace(
    LLAMA_NAMES,
    sparse=MoeNames(
        norm="post_attention_layernorm", router="mlp.gate", expert="mlp.experts.{}.", shared="mlp.shared_expert.",
        shared_gate="mlp.shared_expert_gate",
    ),
)  # fmt: skip

TINY: dict[str, Any] = {
    **qwen2.TINY,
    "architectures": ["Qwen2MoeForCausalLM"],
    "decoder_sparse_step": 2,
    "mlp_only_layers": [],
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 64,
    "norm_topk_prob": False,
    "num_experts": 12,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 160,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    expect_positive(c, "shared_expert_intermediate_size")
    return with_experts(qwen2.arch(c), c, c["shared_expert_intermediate_size"])


def block(a: DecoderArch) -> Block:
    return Block(Gqa(), Gated(), Moe())


FAMILY = Family(
    name="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=LLAMA_QUANT[:2],
    tiny=TINY,
    chat="qwen2d5",
    tools="qwen2d5",
)
