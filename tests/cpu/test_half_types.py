"""Families in the half types that GPUs run: no dtype is mixed up on the way, and the result is near fp32's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.solo import Solo
from tokenmill.models.tiny import make_tiny

IDS = torch.randint(0, 512, (40,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "family", ["llama", "mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3", "gemma2", "gemma3", "gpt_oss", "glm4"]
)
def test_half_types_come_near_fp32(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family, std=0.08)
    exact = Solo(build_model(folder), len(IDS)).logits(IDS)
    model = build_model(folder, ModelBuild(dtype=dtype))
    solo = Solo(model, len(IDS))
    hidden_TD = solo.hidden(IDS, 11)
    assert hidden_TD.dtype == dtype
    near = model.logits(hidden_TD)
    assert near.dtype == torch.float32
    # Roundings of a few layers; a token whose last expert changes differs by more, so the typical one is judged.
    errors_T = (near - exact).square().mean(-1).sqrt() / exact.square().mean(-1).sqrt()
    assert float(errors_T.median()) < 24 * torch.finfo(dtype).eps
