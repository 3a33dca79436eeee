"""Gemma 3 with pictures against transformers: pixels, stages, sizes, and answers however prompts are cut.

A picture's tokens see each other in every layer; a tiny window is shorter than a picture and what stands around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import beside
from tests.support.pictures import data_url, encoded, picture
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tokenmill.api.build import open_text_engine
from tokenmill.api.session import ServedModel
from tokenmill.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from tokenmill.engine.client import start_engine
from tokenmill.errors import ConfigError
from tokenmill.models.gemma3_vision import MEAN, STD, TINY
from tokenmill.models.parity import Probe, check_parity
from tokenmill.models.spec import read_spec
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import load_whole_twin
from tokenmill.types import MediaRef, Request, Sampling, Stop, TextRequest
from tokenmill.vision.facts import read_facts
from tokenmill.vision.square import Square
from tokenmill.vision.tiles import scale_table

RUNNER = "tokenmill.runner.runner:make_runner"
# Any id that is not drawn stands for images here.
CONTEXT, ROOM, SIZE, NEW = 545, 16, 56, 6
TEXT, TOWER = TINY["text_config"], TINY["vision_config"]
Regret = Callable[[str, tuple[int, ...]], float]
# A head of its own: a random model with a tied one says the same token over and over.
UNTIED = {"tie_word_embeddings": False, "text_config": {**TEXT, "tie_word_embeddings": False}}
# Token counts and images in turn.
PROMPTS: dict[str, list[int | str]] = {
    "text": [21],
    "a": [9, "x", 12],
    "a again": [9, "x", 12],
    "another image": [9, "y", 12],
    "first": ["x", 5],
    "last": [6, "y"],
    "two": [5, "x", 2, "y", 30],
}


@pytest.mark.parametrize(("width", "height"), [(60, 45), (56, 56), (30, 91), (7, 300)])
def test_pixels_equal_transformers(width: int, height: int) -> None:
    image = picture(width, height, width)
    wanted = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})(image, return_tensors="np")["pixel_values"]
    tiles, grid = Square(56).cut(image)
    table = scale_table(MEAN, STD)
    ours = np.stack([table[channel][tiles[..., channel]] for channel in range(3)], 1)
    assert grid == () and np.array_equal(ours, wanted)


@pytest.mark.parametrize("window", [8, 32])
def test_every_stage_equals_transformers(tmp_path: Path, window: int) -> None:
    folder = make_tiny("gemma3_vision", tmp_path, overrides={"text_config": {**TEXT, "sliding_window": window}})
    report = check_parity(folder, Probe(tokens=30))
    assert report.ok and report.stages[-1].name == "logits with an image", str(report)


@pytest.mark.parametrize(
    "name",
    ["position_embedding.weight", "patch_embedding.bias", "layers.0.self_attn.out_proj.weight", "post_layernorm.weight",
     "mm_soft_emb_norm.weight", "mm_input_projection_weight"],
)  # fmt: skip
def test_a_spoilt_tensor_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert beside.difference_of_spoilt("gemma3_vision", name, tmp_path, monkeypatch) == "image features"


def test_published_sizes() -> None:
    """gemma-3-4b-it's config.json leaves out what is a default."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}  # fmt: skip
    tower = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
             "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False}
    config = {**TINY, "text_config": text, "vision_config": tower, "mm_tokens_per_image": 256, "eos_token_id": [1, 106]}
    spec = read_spec(config)
    assert spec.vision is not None and spec.vision.ahead and spec.eos_ids == (1, 106)
    assert (spec.vision.tile_tokens, spec.vision.piece) == (256, (896, 896, 3))
    assert spec.linear_params + spec.other_params == 4_300_079_472
    assert [group.window_tokens for group in spec.groups] == [None, 1024] and spec.max_model_tokens == 131072


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**TINY, "mm_tokens_per_image": 12}, "mm_tokens_per_image is 12"),
        ({**TINY, "vision_config": {**TOWER, "model_type": "clip_vision_model"}}, "clip_vision_model"),
        ({**TINY, "vision_config": {**TOWER, "image_size": 57}}, "whole patches"),
        ({**TINY, "text_config": {**TEXT, "use_bidirectional_attention": True}}, "only causal text"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_spec(config)
    with pytest.raises(ConfigError, match="do_pan_and_scan"):
        read_facts(TINY, {"do_pan_and_scan": True}, lambda word: 1)


# ---- answers


def pixels(name: str) -> np.ndarray:
    return np.random.default_rng(len(name) + ord(name[0])).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)


def ids_of(prompt: list[int | str]) -> tuple[tuple[int, ...], list[tuple[str, int]]]:
    ids: list[int] = []
    images = []
    for part in prompt:
        if isinstance(part, int):
            ids += [(len(ids) * 7 + i * 13) % 400 + 3 for i in range(part)]
        else:
            images.append((part, len(ids)))
            ids += [CONTEXT] * ROOM
    return tuple(ids), images


def request(name: str, folder: Path) -> Request:
    ids, images = ids_of(PROMPTS[name])
    media = tuple(MediaRef(image, offset, ROOM, str(folder / image)) for image, offset in images)
    return Request(name, ids, Sampling(temperature=0.0), Stop(NEW), media=media)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_tiny("gemma3_vision", tmp_path_factory.mktemp("gemma3"), overrides=UNTIED)
    for name in "xy":
        (path / name).write_bytes(pixels(name).tobytes())
    return path


@pytest.fixture(scope="module")
def regret(folder: Path) -> Regret:
    """How far transformers' score of an answer's tokens lies below its best ones, the worst of them."""
    twin = cache(lambda: load_whole_twin(folder, CONTEXT))

    @torch.inference_mode()
    def of(name: str, answer: tuple[int, ...]) -> float:
        ids, images = ids_of(PROMPTS[name])
        given = torch.tensor([*ids, *answer[:-1]])
        if images:
            shown = torch.from_numpy(np.concatenate([pixels(image) for image, _ in images]))
            logits = twin().logits(given, shown)
        else:
            logits = twin().model(input_ids=given[None]).logits[0]
        logits = logits[len(ids) - 1 :]
        return float((logits.max(-1).values - logits[range(len(answer)), list(answer)]).max())

    return of


@pytest.mark.parametrize(
    ("rows", "tokens", "tiles", "blocks"),
    [(8, 256, None, 64), (4, 20, None, 64), (1, 17, 1, 64), (3, 21, 2, 7)],
    ids=["batched, own process", "short chunks", "one at a time", "few blocks"],
)
async def test_answers_equal_transformers(
    folder: Path, regret: Regret, rows: int, tokens: int, tiles: int | None, blocks: int
) -> None:
    config = EngineConfig(
        model=ModelConfig(str(folder)),
        cache=CacheConfig(num_blocks=blocks, image_tiles=tiles),
        scheduler=SchedulerConfig(max_rows=rows, max_step_tokens=tokens),
    )
    engine = await start_engine(RUNNER, config, own_process=tokens == 256)
    asked = [request(name, folder) for name in PROMPTS]
    answers = await asyncio.gather(*map(engine.score, asked[:4]))
    answers += await asyncio.gather(*map(engine.score, asked[4:]))
    await engine.close()
    for one, answer in zip(asked, answers, strict=True):
        assert len(answer.token_ids) == NEW and regret(one.id, answer.token_ids) < 1e-3, one.id
    assert answers[1].token_ids != answers[3].token_ids


async def test_an_image_must_fit_into_a_step(folder: Path) -> None:
    config = EngineConfig(
        model=ModelConfig(str(folder)), cache=CacheConfig(num_blocks=64),
        scheduler=SchedulerConfig(max_rows=8, max_step_tokens=23),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="use at least 24"):
        await start_engine(RUNNER, config, own_process=False)


async def test_a_served_question_equals_transformers(folder: Path) -> None:
    engine = await open_text_engine(EngineConfig(model=ModelConfig(str(folder)), cache=CacheConfig(num_blocks=64)))
    assert isinstance(engine, ServedModel)
    image = picture(40, 80, 2)
    part = {"type": "image_url", "image_url": {"url": data_url(encoded(image))}}
    content = [{"type": "text", "text": "Compare"}, part, {"type": "text", "text": "with"}, part]
    wish = TextRequest(
        "a", ({"role": "user", "content": content},), sampling=Sampling(temperature=0.0), max_new_tokens=64,
        ignore_eos=True,
    )  # fmt: skip
    answer = [token async for chunk in engine.generate(wish) for token in chunk.token_ids]
    shown = "\n\n<start_of_image>" + "<image_soft_token>" * ROOM + "<end_of_image>\n\n"
    prompt = f"<s><|im_start|>user\nCompare{shown}with{shown}<|im_end|>\n<|im_start|>assistant\n"
    ids = engine._parts.codec.tokenizer.encode(prompt, False)
    await engine.close()
    tiles = torch.from_numpy(np.concatenate([Square(SIZE).cut(image)[0]] * 2))
    twin = load_whole_twin(folder, TINY["image_token_index"])
    with torch.inference_mode():
        logits = twin.logits(torch.tensor([*ids, *answer[:-1]]), tiles)[len(ids) - 1 :]
    assert len(answer) == 64 and float((logits.max(-1).values - logits[range(64), answer]).max()) < 1e-3
