"""Qwen3-MoE: Qwen3 with a mixture of experts in most layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.kernels.ops import Routing
from tokenmill.layers.attention import Gqa
from tokenmill.layers.mlp import Gated
from tokenmill.layers.moe import Moe, MoeArch, MoeNames
from tokenmill.models import qwen3
from tokenmill.models.family import Block, DecoderArch, Family, expect_positive
from tokenmill.models.llama import LLAMA_QUANT

NAMES = replace(
    qwen3.NAMES, sparse=MoeNames(norm="post_attention_layernorm", router="mlp.gate", expert="mlp.experts.{}.")
)

TINY: dict[str, Any] = {
    **qwen3.TINY,
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    return with_experts(qwen3.arch(c), c)


def with_experts(a: DecoderArch, c: dict[str, Any], shared_size: int = 0) -> DecoderArch:
    """Every `decoder_sparse_step`-th layer has experts, but for those that `mlp_only_layers` names."""
    expect_positive(c, "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    if c["num_experts_per_tok"] > c["num_experts"]:
        raise ConfigError(
            f"config.json: num_experts_per_tok is {c['num_experts_per_tok']}; there are {c['num_experts']} experts"
        )
    step, named = int(c.get("decoder_sparse_step") or 1), c.get("mlp_only_layers") or ()
    routing = Routing(c["num_experts_per_tok"], normalise=bool(c.get("norm_topk_prob", False)))
    return replace(
        a,
        sparse=MoeArch(a.hidden_size, c["moe_intermediate_size"], c["num_experts"], routing, shared_size),
        dense_layers=tuple(i for i in range(a.num_layers) if i in named or (i + 1) % step),
    )


def block(a: DecoderArch) -> Block:
    return Block(Gqa(qk_norm=True), Gated(), Moe())


FAMILY = Family(
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=LLAMA_QUANT[:2],
    tiny=TINY,
    chat="qwen3",
    tools="qwen3",
    reasoning="think_tags",
)
