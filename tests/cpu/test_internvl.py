"""InternVL's tower, projector and language part against transformers' own InternVL; sizes against published ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.support import beside

from tokenmill.errors import ConfigError, FormatError
from tokenmill.models.build import build_model
from tokenmill.models.internvl import TINY
from tokenmill.models.spec import families, read_spec
from tokenmill.models.tiny import make_tiny

SMALL_TOWER = {**TINY["vision_config"], "norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True}
QWEN2 = {**families()["qwen2"].tiny, "vocab_size": 553, "tie_word_embeddings": True}
INTERNLM3 = {**families()["internlm3"].tiny, "vocab_size": 553}
SHAPES = {
    "6b-internlm2": {},
    "300m-qwen2": {"vision_config": SMALL_TOWER, "llm_config": QWEN2},
    "300m-internlm3": {"vision_config": SMALL_TOWER, "llm_config": INTERNLM3},
    "bare-layers": {"vision_config": {**SMALL_TOWER, "qkv_bias": False}, "select_layer": -2},
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_stage_equals_transformers(tmp_path: Path, name: str) -> None:
    report = beside.parity(make_tiny("internvl", tmp_path, overrides=SHAPES[name]), 40)
    assert [stage.name for stage in report.stages][-2:] == ["image features", "logits with an image"]
    # transformers' twin projects the layer named, so a layer less is a different result, not a lenient one.
    assert report.ok and all(stage.size > 0.1 for stage in report.stages), str(report)


@pytest.mark.parametrize(
    "name",
    ["vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding", "mlp1.0.bias",
     "vision_model.embeddings.patch_embedding.weight", "vision_model.encoder.layers.1.attn.k_norm.weight",
     "vision_model.encoder.layers.2.ls2", "mlp1.3.weight", "vision_model.encoder.layers.0.mlp.fc2.bias"],
)  # fmt: skip
def test_a_spoilt_tensor_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert beside.difference_of_spoilt("internvl", name, tmp_path, monkeypatch) == "image features"


def test_published_sizes() -> None:
    """InternVL2-26B and the small tower, to the last parameter."""
    llm = {
        **families()["internlm2"].tiny, "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 48,
        "num_attention_heads": 48, "num_key_value_heads": 8, "vocab_size": 92553, "max_position_embeddings": 32768,
    }  # fmt: skip
    big = {**TINY["vision_config"], "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45,
           "num_attention_heads": 25, "image_size": 448}  # fmt: skip
    spec = read_spec({**TINY, "llm_config": llm, "vision_config": big, "force_image_size": 448})
    assert spec.vision is not None and spec.family == "internlm2"
    assert spec.vision.params == 5_536_496_000 + 116_429_824
    assert spec.linear_params + spec.other_params == 25_514_186_112
    assert (spec.vision.tile_tokens, spec.vision.most_tiles) == (256, 13)
    small = {**SMALL_TOWER, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
             "num_attention_heads": 16, "image_size": 448}  # fmt: skip
    spec = read_spec({**TINY, "vision_config": small, "force_image_size": 448})
    projector = 2 * 4096 + (4096 + 1) * 128 + (128 + 1) * 128
    assert spec.vision is not None and spec.vision.params == 304_012_288 + projector


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ps_version": "v1"}, "ps_version is 'v1'"), ({"downsample_ratio": 0.25}, "downsample_ratio"),
        ({"select_layer": -9}, "select_layer is -9"), ({"force_image_size": 448}, "force_image_size is 448"),
        ({"vision_config": {**SMALL_TOWER, "hidden_act": "relu"}}, "hidden_act"),
        ({"vision_config": {**SMALL_TOWER, "num_attention_heads": 5}}, "num_attention_heads"),
        ({"vision_config": {"hidden_size": 8}}, "intermediate_size"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused(changed: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_spec({**TINY, **changed})


def test_a_tower_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = make_tiny("internvl", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_model.embeddings.position_embedding"] = tensors["vision_model.embeddings.position_embedding"][:, :9]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match="position_embedding has shape"):
        build_model(folder)
