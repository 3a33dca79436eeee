"""DeepSeek-V3 and R1: V2 with sigmoid scores, a bias on the choice alone, and weights that sum to a factor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.kernels.ops import Routing
from tokenmill.models import deepseek_v2
from tokenmill.models.deepseek_v2 import EXPERTS, block, latent_arch
from tokenmill.models.family import DecoderArch, Family

NAMES = replace(deepseek_v2.NAMES, sparse=replace(EXPERTS, choice_bias="mlp.gate.e_score_correction_bias"))

TINY: dict[str, Any] = {
    **deepseek_v2.TINY,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**deepseek_v2.TINY["rope_scaling"], "mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}


def arch(c: dict[str, Any]) -> DecoderArch:
    if c.get("rope_interleave", True) is False:
        raise ConfigError("config.json: rope_interleave is false; only interleaved pairs are served for this family")
    routing = Routing(
        top_k=c["num_experts_per_tok"],
        score="sigmoid",
        normalise=bool(c.get("norm_topk_prob", True)),
        scale=float(c.get("routed_scaling_factor") or 1.0),
        groups=c["n_group"],
        top_groups=c["topk_group"],
        group_votes=2,
    )
    return latent_arch(c, routing)


FAMILY = Family(
    name="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=(),
    tiny=TINY,
    tools="deepseek_v3",
)
