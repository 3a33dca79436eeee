"""The parity check agrees where models agree, and names the stage where something was spoilt."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenmill.errors import ConfigError
from tokenmill.models import parity
from tokenmill.models.parity import Probe, StageParity, check_parity
from tokenmill.models.tiny import make_tiny

STAGES = ["embedding", "layer 0 attention", "layer 0 mlp", "layer 1 attention", "layer 1 mlp", "final norm", "logits",
          "logits in chunks"]


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_a_sound_model_agrees_at_every_stage(tmp_path, family):
    report = check_parity(make_tiny(family, tmp_path), Probe(tokens=50))
    assert report.ok and report.first_difference is None
    assert [stage.name for stage in report.stages] == STAGES
    assert all(stage.size > 0.1 for stage in report.stages)
    assert "every stage agrees" in str(report)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("model.tok_embeddings.weight", "embedding"),
        ("model.layers.0.attention.wqkv.weight", "layer 0 attention"),
        ("model.layers.1.attention.wo.weight", "layer 1 attention"),
        ("model.layers.1.ffn_norm.weight", "layer 1 mlp"),
        ("model.layers.0.feed_forward.w3.weight", "layer 0 mlp"),
        ("model.norm.weight", "final norm"),
        ("output.weight", "logits"),
    ],
)
def test_the_first_spoilt_stage_is_named(tmp_path, monkeypatch, name, stage):
    """Ours reads a folder in which one tensor is 2 % off, transformers the sound one."""
    sound, spoilt = make_tiny("internlm2", tmp_path / "a"), make_tiny("internlm2", tmp_path / "b")
    tensors = load_file(spoilt / "model.safetensors")
    tensors[name] = tensors[name] * 1.02
    save_file(tensors, spoilt / "model.safetensors", {"format": "pt"})
    build = parity.build_model
    monkeypatch.setattr(parity, "build_model", lambda folder, how: build(spoilt, how))
    report = check_parity(sound, Probe(tokens=30))
    assert report.first_difference == stage and not report.ok
    assert f"first stage that differs: {stage}" in str(report)


def test_a_cache_that_forgets_shows_in_chunks_only(tmp_path, monkeypatch):
    folder = make_tiny("llama", tmp_path)
    rows = parity.Solo.rows

    def forgetful(self, num_tokens):
        meta = rows(self, num_tokens)
        if self.length == 21:
            meta.writes_T = (torch.full_like(meta.writes_T[0], -1),)
        return meta

    monkeypatch.setattr(parity.Solo, "rows", forgetful)
    assert check_parity(folder, Probe(tokens=40)).first_difference == "logits in chunks"


def test_nan_is_a_difference():
    assert not StageParity("logits", math.nan, 1.0).ok
    assert not StageParity("logits", 0.0, math.nan).ok


def test_what_transformers_cannot_compute_is_refused(tmp_path):
    scaling = {"rope_type": "qwen", "factor": 1.0}
    with pytest.raises(ConfigError, match="nothing to compare with"):
        check_parity(make_tiny("llama", tmp_path, overrides={"rope_scaling": scaling}))
