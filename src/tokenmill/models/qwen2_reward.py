"""Qwen2 and Qwen2.5 reward models: the trunk, and two linears with ReLU between in place of the head."""

from __future__ import annotations

from dataclasses import replace

from tokenmill.layers.score import Score
from tokenmill.models import qwen2

FAMILY = replace(
    qwen2.FAMILY,
    name="qwen2_reward",
    architectures=("Qwen2ForRewardModel",),
    tiny={**qwen2.TINY, "architectures": ["Qwen2ForRewardModel"]},
    score=Score(("score.0", "score.2"), bias=True),
)
