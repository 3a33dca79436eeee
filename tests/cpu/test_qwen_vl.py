"""Qwen2-VL and Qwen2.5-VL, stage by stage against transformers: pixels, windows, towers, positions, sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import beside
from tests.support.pictures import picture
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.vision_utils import get_vision_window_index

from tokenmill.engine.images import shift_of, turns_of
from tokenmill.errors import ConfigError, RequestError
from tokenmill.layers.patch_vit import window_patches
from tokenmill.models import parity, qwen2_5_vl, qwen2_vl
from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.parity import Probe, check_parity
from tokenmill.models.spec import read_spec
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import load_whole_twin
from tokenmill.types import MediaRef
from tokenmill.vision.qwen_vl import Patching, patching_of
from tokenmill.vision.tiles import scale_table

FAMILIES = {"qwen2_vl": qwen2_vl.TINY, "qwen2_5_vl": qwen2_5_vl.TINY}
NEW_WORDS = ("architectures", "model_type", "vision_config", "torch_dtype", "tie_word_embeddings")


def nested(tiny: dict[str, Any]) -> dict[str, Any]:
    """The config as transformers 5 writes it."""
    text = {key: value for key, value in tiny.items() if key not in (*NEW_WORDS, "rope_scaling", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": tiny["rope_theta"], "mrope_section": [4, 6, 6]}
    outer = {key: tiny[key] for key in tiny if key in NEW_WORDS or key.endswith("token_id")}
    return {**outer, "text_config": {**text, "model_type": "qwen2_5_vl_text", "rope_parameters": rope}}


# ---- pixels


@pytest.mark.parametrize(
    ("width", "height", "least", "most"),
    [(60, 45, 3136, 12845056), (28, 28, 3136, 62720), (400, 50, 3136, 62720), (300, 301, 3136, 62720),
     (7, 900, 3136, 12845056), (640, 480, 3136, 100352), (1, 150, 784, 784), (42, 70, 784, 62720)],
)  # fmt: skip
def test_pixels_equal_transformers(width: int, height: int, least: int, most: int) -> None:
    image = picture(width, height, width)
    theirs = Qwen2VLImageProcessorPil(min_pixels=least, max_pixels=most)(image, return_tensors="np")
    patches, (rows, columns) = Patching(14, least, most).cut(image)
    table = scale_table(qwen2_vl.later.MEAN, qwen2_vl.later.STD)
    scaled = np.stack([table[channel][patches[:, channel]] for channel in range(3)], 1)
    # A still picture is shown in both frames of a patch.
    framed = np.repeat(scaled[:, :, None], 2, 2).reshape(len(scaled), -1)
    assert theirs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    assert framed.dtype == np.float32 and np.array_equal(framed, theirs["pixel_values"])


def test_sizes_of_many_pictures() -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 3000, (3000, 2)).tolist():
        least, most = int(rng.choice([784, 3136, 50176])), int(rng.choice([50176, 1003520, 12845056]))
        if max(width, height) > 200 * min(width, height):
            with pytest.raises(RequestError, match="at most 200 times"):
                Patching(14, least, most).size(width, height)
            continue
        assert Patching(14, least, most).size(width, height) == smart_resize(height, width, 28, least, most)[::-1]


def test_limits_of_the_processor() -> None:
    config = qwen2_5_vl.TINY
    assert patching_of(config, {}) == Patching(14, 56 * 56, 28 * 28 * 1280)
    assert patching_of(config, {"min_pixels": 784, "max_pixels": 1568}) == Patching(14, 784, 1568)
    assert patching_of(config, {"size": {"shortest_edge": 784, "longest_edge": 1568}}) == Patching(14, 784, 1568)
    for wrong in ({"merge_size": 4}, {"patch_size": 16}, {"min_pixels": 9, "max_pixels": 5}):
        with pytest.raises(ConfigError, match=next(iter(wrong)) if len(wrong) == 1 else "9 to 5 pixels"):
            patching_of(config, wrong)


# ---- the tower


def test_windows_equal_transformers() -> None:
    grids = [(4, 4), (5, 9), (1, 1), (7, 3), (8, 12)]
    sizes = torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in grids])
    order, ends = get_vision_window_index(sizes, 2, 112, 14)
    windows = [row[row >= 0].tolist() for row in window_patches(grids, 4)]
    assert np.cumsum([0, *map(len, windows)]).tolist() == ends.tolist()
    assert [patch // 4 for row in windows for patch in row[::4]] == order.tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_stage_equals_transformers(tmp_path: Path, name: str) -> None:
    report = check_parity(make_tiny(name, tmp_path), Probe(tokens=40))
    assert [stage.name for stage in report.stages][-2:] == ["image features", "logits with an image"]
    assert report.ok and all(stage.size > 0.1 for stage in report.stages), str(report)
    assert all(stage.difference < 1e-4 for stage in report.stages if "logits" in stage.name), str(report)


def test_the_config_of_transformers_5(tmp_path: Path) -> None:
    folder = make_tiny("qwen2_5_vl", tmp_path)
    (folder / "config.json").write_text(json.dumps(nested(qwen2_5_vl.TINY)))
    report = check_parity(folder, Probe(tokens=20))
    assert report.ok, str(report)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_types_come_near_fp32(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """As GPUs run it: no dtype is mixed up on the way."""
    folder = make_tiny(name, tmp_path, std=0.08)
    exact, half = build_model(folder).vision, build_model(folder, ModelBuild(dtype=dtype)).vision
    assert exact is not None and half is not None
    draw = torch.Generator().manual_seed(1)
    pieces = torch.randint(0, 256, (4 * 27, 3, 14, 14), generator=draw, dtype=torch.uint8)
    grids = ((3, 7), (2, 3))
    wanted, near = exact(pieces, grids), half(pieces, grids)
    assert near.dtype == dtype
    errors = (near.float() - wanted).square().mean(-1).sqrt() / wanted.square().mean(-1).sqrt()
    assert float(errors.median()) < 24 * torch.finfo(dtype).eps


def test_a_bent_rope_and_a_shared_head(tmp_path: Path) -> None:
    """YaRN with sections, and the head that the small models share with their embedding."""
    bent = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "mrope_section": [4, 6, 6]}
    changed = {"rope_scaling": bent, "tie_word_embeddings": True}
    report = check_parity(make_tiny("qwen2_vl", tmp_path, overrides=changed), Probe(tokens=20))
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("qwen2_5_vl", "visual.patch_embed.proj.weight"), ("qwen2_5_vl", "visual.blocks.1.mlp.up_proj.weight"),
     ("qwen2_5_vl", "visual.merger.ln_q.weight"), ("qwen2_vl", "visual.blocks.2.norm2.bias"),
     ("qwen2_vl", "visual.blocks.0.mlp.fc1.bias"), ("qwen2_vl", "visual.merger.mlp.2.weight")],
)  # fmt: skip
def test_a_spoilt_tensor_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tensor: str) -> None:
    assert beside.difference_of_spoilt(name, tensor, tmp_path, monkeypatch) == "image features"


@pytest.mark.parametrize("wrong", ["grids", "turns"])
def test_wrong_places_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Rows for columns: in the tower, or in the language model's turns."""
    folder = make_tiny("qwen2_5_vl", tmp_path)
    if wrong == "turns":
        monkeypatch.setattr(parity, "turns_of", lambda *given: turns_of(*given)[[0, 2, 1]])
        assert check_parity(folder, Probe(tokens=20)).first_difference == "logits with an image"
        return
    call = qwen2_5_vl.QwenVision.__call__
    monkeypatch.setattr(
        qwen2_5_vl.QwenVision, "__call__", lambda self, pieces, grids: call(self, pieces, [g[::-1] for g in grids])
    )
    assert check_parity(folder, Probe(tokens=20)).first_difference == "image features"


# ---- positions


def test_turns_equal_transformers(tmp_path: Path) -> None:
    """Any piece of a prompt, and what comes behind it."""
    twin = load_whole_twin(make_tiny("qwen2_5_vl", tmp_path), 500)
    grids, gaps = [(3, 5), (2, 2), (6, 1)], [4, 1, 3, 7]
    ids: list[int] = [5] * gaps[0]
    media: list[MediaRef] = []
    for grid, gap in zip(grids, gaps[1:], strict=True):
        media.append(MediaRef("x", len(ids), grid[0] * grid[1], grid=grid))
        ids += [500] * media[-1].num_tokens + [7] * gap
    shown = torch.tensor([ids])
    sizes = torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in grids])
    theirs, delta = twin.model.model.get_rope_index(shown, (shown == 500).int(), sizes)
    whole = theirs[:, 0].numpy()
    assert shift_of(tuple(media)) == int(delta) < 0
    behind = media[-1].offset + media[-1].num_tokens
    for start in range(len(ids)):
        for end in (start + 1, start + 5, len(ids)):
            turns = turns_of(tuple(media), start, min(end, len(ids)))
            if start >= behind:
                assert turns is None
                continue
            assert turns is not None and np.array_equal(turns, whole[:, start:end])
    assert np.array_equal(np.arange(behind, len(ids)) + int(delta), whole[0, behind:])
    assert turns_of((), 0, 9) is None and turns_of((MediaRef("x", 0, 4),), 0, 9) is None


# ---- sizes and refusals

BIG_TEXT = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}  # fmt: skip
BIG_VISION = {
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
    "qwen2_5_vl": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                   "out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_of_the_7b_models(name: str) -> None:
    """To the last parameter, as transformers builds them."""
    tiny = FAMILIES[name]
    config = {**tiny, **BIG_TEXT, "vision_config": {**tiny["vision_config"], **BIG_VISION[name]}}
    spec = read_spec(config)
    with torch.device("meta"):
        theirs = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))
    assert spec.linear_params + spec.other_params == sum(p.numel() for p in theirs.parameters())
    assert spec.vision is not None and spec.vision.grids and spec.family == "qwen2"
    assert spec.vision.params == sum(p.numel() for p in theirs.model.visual.parameters())
    assert spec.vision.most_tiles * spec.vision.tile_tokens == 12845056 // 28**2


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [("qwen2_5_vl", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"), ("qwen2_vl", {"hidden_act": "gelu"}, "hidden_act"),
     ("qwen2_5_vl", {"spatial_merge_size": 4}, "spatial_merge_size"), ("qwen2_5_vl", {"num_heads": 7}, "multiple of 4"),
     ("qwen2_5_vl", {"window_size": 100}, "window_size is 100"), ("qwen2_vl", {"depth": 0}, "depth is 0")],
)  # fmt: skip
def test_what_is_not_served_is_refused(name: str, changed: dict[str, Any], words: str) -> None:
    tiny = FAMILIES[name]
    with pytest.raises(ConfigError, match=words):
        read_spec({**tiny, "vision_config": {**tiny["vision_config"], **changed}})


def test_sections_must_fit_the_head() -> None:
    with pytest.raises(ConfigError, match="add up to 16"):
        read_spec({**qwen2_vl.TINY, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}})
    with pytest.raises(ConfigError, match="no mrope_section"):
        read_spec({**qwen2_vl.TINY, "rope_scaling": None})
