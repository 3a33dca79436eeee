"""Mixtral: Mistral with a mixture of experts in every layer, two of them a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.kernels.ops import Routing
from tokenmill.layers.attention import Gqa
from tokenmill.layers.mlp import Gated
from tokenmill.layers.moe import Moe, MoeArch, MoeNames
from tokenmill.models import mistral
from tokenmill.models.family import Block, DecoderArch, Family, expect_positive
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_QUANT

NAMES = replace(
    LLAMA_NAMES,
    sparse=MoeNames(
        norm="post_attention_layernorm", router="block_sparse_moe.gate", expert="block_sparse_moe.experts.{}.",
        gate="w1", up="w3", down="w2",
    ),
)  # fmt: skip

TINY: dict[str, Any] = {
    **mistral.TINY,
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "intermediate_size": 96,
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    expect_positive(c, "num_local_experts", "num_experts_per_tok")
    routing = Routing(c["num_experts_per_tok"])
    return replace(
        mistral.arch(c), sparse=MoeArch(c["hidden_size"], c["intermediate_size"], c["num_local_experts"], routing)
    )


def block(a: DecoderArch) -> Block:
    return Block(Gqa(), Gated(), Moe())


FAMILY = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=LLAMA_QUANT[:2],
    tiny=TINY,
    chat="mistral",
    tools="mistral",
)
