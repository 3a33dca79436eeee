"""InternLM2 and InternLM2.5 reward models: the trunk, and one row in place of the head."""

from __future__ import annotations

from dataclasses import replace

from tokenmill.layers.score import Score
from tokenmill.models import internlm2

FAMILY = replace(
    internlm2.FAMILY,
    name="internlm2_reward",
    architectures=("InternLM2ForRewardModel",),
    tiny={
        **internlm2.TINY,
        "architectures": ["InternLM2ForRewardModel"],
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
        },
    },
    score=Score(("v_head",)),
)
