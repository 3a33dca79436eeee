"""DeepSeek-V2 and V2-Lite: latent attention, dense first layers, then experts of which one is everybody's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.kernels.ops import Routing
from tokenmill.layers.mla import Mla, MlaArch, MlaNames
from tokenmill.layers.mlp import Gated
from tokenmill.layers.moe import Moe, MoeArch, MoeNames
from tokenmill.layers.rope import RopeFacts, yarn_mscale
from tokenmill.models.family import Block, DecoderArch, Family, expect_positive
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_TINY, decoder_arch

EXPERTS = MoeNames(
    norm="post_attention_layernorm", router="mlp.gate", expert="mlp.experts.{}.", shared="mlp.shared_experts."
)
NAMES = replace(LLAMA_NAMES, attention=MlaNames(), sparse=EXPERTS)
METHODS = ("greedy", "group_limited_greedy")

TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in ("mlp_bias", "pretraining_tp")},
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "kv_lora_rank": 64,
    "max_position_embeddings": 256,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 48,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 4, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 64, "type": "yarn",
    },
    "routed_scaling_factor": 16.0,
    "scoring_func": "softmax",
    "topk_group": 2,
    "topk_method": "group_limited_greedy",
    "v_head_dim": 24,
}  # fmt: skip


def arch(c: dict[str, Any]) -> DecoderArch:
    """`greedy` looks at all experts, `group_limited_greedy` at the best groups' only."""
    method = c.get("topk_method") or "greedy"
    if method not in METHODS:
        raise ConfigError(f"config.json: topk_method is {method!r}; it must be one of {', '.join(METHODS)}")
    normalise = bool(c.get("norm_topk_prob", False))
    scale = 1.0 if normalise else float(c.get("routed_scaling_factor") or 1.0)
    routing = Routing(c["num_experts_per_tok"], normalise=normalise, scale=scale)
    if method == "group_limited_greedy":
        routing = replace(routing, groups=c["n_group"], top_groups=c["topk_group"])
    return latent_arch(c, routing)


def latent_arch(c: dict[str, Any], routing: Routing) -> DecoderArch:
    """What V2 and V3 have in common: all but the routing."""
    expect_positive(
        c, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts",
        "num_experts_per_tok", "moe_intermediate_size",
    )  # fmt: skip
    if c["n_routed_experts"] % routing.groups:
        raise ConfigError(
            f"config.json: n_routed_experts {c['n_routed_experts']} is not a multiple of n_group {routing.groups}"
        )
    # The rotation's size is that of the rotated channels alone.
    a = decoder_arch({**c, "head_dim": c["qk_rope_head_dim"], "num_key_value_heads": None})
    first, step = int(c.get("first_k_dense_replace") or 0), int(c.get("moe_layer_freq") or 1)
    shared = int(c.get("n_shared_experts") or 0) * c["moe_intermediate_size"]
    return replace(
        a,
        attention=_attention(c, a.rope),
        sparse=MoeArch(a.hidden_size, c["moe_intermediate_size"], c["n_routed_experts"], routing, shared),
        dense_layers=tuple(i for i in range(a.num_layers) if i < first or i % step),
    )


def _attention(c: dict[str, Any], rope: RopeFacts) -> MlaArch:
    """Stretched by YaRN, scores are scaled by its factor for all dimensions, squared: once for q, once for k."""
    stretch = yarn_mscale(rope.factor, rope.mscale_all_dim) if rope.kind != "default" else 1.0
    return MlaArch(
        hidden_size=c["hidden_size"],
        num_heads=c["num_attention_heads"],
        narrow=int(c.get("q_lora_rank") or 0),
        latent=c["kv_lora_rank"],
        plain_dim=c["qk_nope_head_dim"],
        rotated_dim=c["qk_rope_head_dim"],
        value_dim=c["v_head_dim"],
        scale=(c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5 * stretch**2,
        bias=bool(c.get("attention_bias", False)),
    )


def block(a: DecoderArch) -> Block:
    return Block(Mla(), Gated(), Moe())


FAMILY = Family(
    name="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=(),
    tiny=TINY,
)
