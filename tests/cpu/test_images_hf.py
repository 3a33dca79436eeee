"""LLaVA-1.5 and InternVL in Hugging Face's form against transformers' own classes: every stage, and served answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import beside
from tests.support.pictures import data_url, encoded, picture

from tokenmill import GenerationConfig, TurbomindEngineConfig, pipeline
from tokenmill.api.build import open_text_engine
from tokenmill.api.session import ServedModel
from tokenmill.cli.main import main
from tokenmill.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from tokenmill.errors import ConfigError
from tokenmill.models import internvl_hf, llava, parity
from tokenmill.models.parity import Probe, check_parity
from tokenmill.models.spec import families, read_spec
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import load_whole_twin
from tokenmill.tokenize.choose import TemplateChoice
from tokenmill.types import Sampling, TextRequest
from tokenmill.vision.crop import Crop
from tokenmill.vision.cutting import Cutting
from tokenmill.vision.facts import read_facts
from tokenmill.vision.tiles import Tiling

WIDE, TALL = picture(150, 60, 1), picture(40, 80, 2)
CLIP, TOWER = llava.TINY["vision_config"], internvl_hf.TINY["vision_config"]
LLAMA = {**families()["llama"].tiny, "vocab_size": 553, "tie_word_embeddings": False}
SIX = {**TOWER, "norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llava": ("llava", {}),
    "llava-last-layer": ("llava", {"vision_config": {**CLIP, "hidden_act": "gelu"}, "vision_feature_layer": -1}),
    "internvl-300m": ("internvl_hf", {}),
    "internvl-6b": ("internvl_hf", {"vision_config": SIX, "text_config": LLAMA}),
}
GREETING = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. "
)
# How a family cuts, what stands for a picture, and how many vectors a tile becomes.
CUTTINGS: dict[str, Cutting] = {"llava": Crop(56), "internvl_hf": Tiling(56)}
WORDS = {"llava": ("", "<image>", "", 16), "internvl_hf": ("<img>", "<IMG_CONTEXT>", "</img>", 4)}


@pytest.mark.parametrize("name", SHAPES)
def test_every_stage_equals_transformers(tmp_path: Path, name: str) -> None:
    family, overrides = SHAPES[name]
    report = check_parity(make_tiny(family, tmp_path, overrides=overrides), Probe(tokens=30))
    assert [stage.name for stage in report.stages][-2:] == ["image features", "logits with an image"]
    assert report.ok and all(stage.size > 0.1 for stage in report.stages), str(report)


def test_a_tower_without_its_inner_name_is_read(tmp_path: Path) -> None:
    """transformers since 5 writes `vision_tower.` where published folders have `vision_tower.vision_model.`."""
    folder = make_tiny("llava", tmp_path)
    tower = parity.build_model(folder).vision
    tensors = load_file(folder / "model.safetensors")
    save_file({k.replace(".vision_model.", "."): v for k, v in tensors.items()}, folder / "model.safetensors")
    tiles = torch.arange(2 * 56 * 56 * 3).view(2, 56, 56, 3).to(torch.uint8)
    again = parity.build_model(folder).vision
    assert tower is not None and again is not None and torch.equal(tower(tiles, ()), again(tiles, ()))


@pytest.mark.parametrize(
    "name",
    ["class_embedding", "position_embedding.weight", "pre_layrnorm.bias", "layers.0.self_attn.k_proj.weight",
     "layers.1.layer_norm2.weight", "layers.1.mlp.fc1.bias", "multi_modal_projector.linear_1.weight"],
)  # fmt: skip
def test_a_spoilt_tensor_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert beside.difference_of_spoilt("llava", name, tmp_path, monkeypatch) == "image features"


def test_published_sizes() -> None:
    """llava-1.5-7b-hf's config.json leaves out what is a default; InternVL3-1B-hf's tower in numbers."""
    text = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, "model_type": "llama",
            "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064}  # fmt: skip
    vision = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
              "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
              "vocab_size": 32000}  # fmt: skip
    spec = read_spec({**llava.TINY, "text_config": text, "vision_config": vision, "image_token_index": 32000})
    assert spec.vision is not None and spec.vision.tile_tokens == 576 and spec.vision.most_tiles == 1
    assert spec.linear_params + spec.other_params == 7_063_427_072 and spec.eos_ids == (2,) and spec.dtype == "float16"
    tower = {"attention_bias": True, "model_type": "internvl_vision"}
    big = read_spec({**internvl_hf.TINY, "vision_config": tower}).vision
    assert big is not None and (big.tile_tokens, big.most_tiles) == (256, 13)
    assert big.params == 304_012_288 + 2 * 4096 + (4096 + 1) * 128 + (128 + 1) * 128


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**llava.TINY, "vision_config": {**CLIP, "model_type": "siglip_vision_model"}}, "siglip"),
        ({**llava.TINY, "vision_feature_layer": [-2, -5]}, "a single layer"),
        ({**llava.TINY, "vision_feature_layer": -9}, "vision_feature_layer is -9"),
        ({**llava.TINY, "vision_feature_select_strategy": "full"}, "select_strategy is 'full'"),
        ({**llava.TINY, "vision_config": {**CLIP, "image_size": 57}}, "whole patches"),
        ({**internvl_hf.TINY, "vision_config": {**TOWER, "use_mean_pooling": False}}, "use_mean_pooling"),
        ({**internvl_hf.TINY, "vision_config": {**TOWER, "image_size": [56, 28]}}, "only squares"),
        ({**internvl_hf.TINY, "vision_config": {**SIX, "layer_norm_eps": 1e-5}}, "with use_qk_norm"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_spec(config)


def test_an_image_processor_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="the tower takes 56 pixels"):
        read_facts(llava.TINY, {"crop_size": {"height": 224, "width": 224}}, lambda word: 497)
    facts = read_facts(llava.TINY, {"crop_size": 56, "size": {"shortest_edge": 56}}, lambda word: 497)
    assert facts is not None and facts.cutting == Crop(56) and facts.tile_tokens == 16
    facts = read_facts(internvl_hf.TINY, {"max_patches": 4}, lambda word: 1)
    assert facts is not None and facts.cutting == replace(Tiling(56), max_tiles=4) and facts.tile_tokens == 4


@pytest.fixture(scope="module", params=CUTTINGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, make_tiny(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
async def served(folder: tuple[str, Path]) -> AsyncIterator[ServedModel]:
    model = ModelConfig(str(folder[1]))
    config = EngineConfig(model=model, cache=CacheConfig(num_blocks=64), scheduler=SchedulerConfig(max_rows=4))
    engine = await open_text_engine(config)
    assert isinstance(engine, ServedModel)
    yield engine
    await engine.close()


def chat(family: str, *turns: str) -> str:
    """The prompt, written by hand: user and assistant in turn."""
    if family == "internvl_hf":
        said = [f"<|im_start|>{('user', 'assistant')[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(turns)]
        return "<s>" + "".join(said) + "<|im_start|>assistant\n"
    said = [f"ASSISTANT: {text}</s>" if i % 2 else f"USER: {text} " for i, text in enumerate(turns)]
    return "<s>" + GREETING + "".join(said) + "ASSISTANT:"


async def ask(engine: ServedModel, messages: list[dict[str, Any]], count: int) -> list[int]:
    wish = TextRequest("a", tuple(messages), sampling=Sampling(temperature=0.0), max_new_tokens=count, ignore_eos=True)
    return [token async for chunk in engine.generate(wish) for token in chunk.token_ids]


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


@torch.inference_mode()
def check(folder: tuple[str, Path], engine: ServedModel, prompt: str, pictures: list[Any], answer: list[int]) -> None:
    """transformers' best token at every place of the answer is the answer's, or within 1e-3 of it."""
    family, path = folder
    start, context, end, room = WORDS[family]
    tiles = [CUTTINGS[family].cut(one)[0] for one in pictures]
    for each in tiles:
        prompt = prompt.replace("<picture>", start + context * (len(each) * room) + end, 1)
    tokenizer = engine._parts.codec.tokenizer
    ids = tokenizer.encode(prompt, False)
    twin = load_whole_twin(path, tokenizer.vocabulary.token_id(context) or 0)
    logits = twin.logits(torch.tensor([*ids, *answer[:-1]]), torch.from_numpy(np.concatenate(tiles)))[len(ids) - 1 :]
    assert float((logits.max(-1).values - logits[range(len(answer)), answer]).max()) < 1e-3


async def test_answers_equal_transformers(folder: tuple[str, Path], served: ServedModel) -> None:
    wide, tall = image(encoded(WIDE)), image(encoded(TALL))
    first = {"role": "user", "content": [wide, {"type": "text", "text": "What is this?"}]}
    answer = await ask(served, [first], 64)
    assert len(answer) == 64
    check(folder, served, chat(folder[0], "<picture>\nWhat is this?"), [WIDE], answer)
    history = [first, {"role": "assistant", "content": "a gradient"}]
    second = {"role": "user", "content": [{"type": "text", "text": "And"}, tall, wide]}
    answer = await ask(served, [*history, second], 8)
    shown = "And\n<picture>\n<picture>" if folder[0] == "llava" else "And<picture>\n<picture>\n"
    prompt = chat(folder[0], "<picture>\nWhat is this?", "a gradient", shown)
    check(folder, served, prompt, [WIDE, TALL, WIDE], answer)


async def test_the_folders_own_template_is_given_parts(tmp_path: Path) -> None:
    """llava-1.5's own Jinja text takes content as parts only: text would be dropped without a word."""
    path = make_tiny("llava", tmp_path)
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% set message = m %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    config = EngineConfig(model=ModelConfig(str(path)), cache=CacheConfig(num_blocks=64))
    engine = await open_text_engine(config, chat_template=TemplateChoice("hf"))
    assert isinstance(engine, ServedModel)
    text = await engine._parts.codec.render(({"role": "user", "content": "<image>\nHi"},))
    await engine.close()
    assert text == "USER: <image>\nHi ASSISTANT:"


def test_lite_quantizes_the_language_part(folder: tuple[str, Path]) -> None:
    family, path = folder
    out = path.parent / f"{path.name}-awq"
    small = ["--calib-samples", "2", "--calib-seqlen", "48", "--w-group-size", "64"]
    assert main(["lite", "auto_awq", str(path), *small, "--work-dir", str(out)]) == 0
    before, after = load_file(path / "model.safetensors"), load_file(out / "model.safetensors")
    kept = [name for name in before if not name.startswith("language_model.model.layers.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    packed = [name for name in after if name not in before]
    assert packed and all(name.startswith("language_model.model.layers.") for name in packed)
    report = check_parity(out, Probe(tokens=30))
    assert report.ok and report.stages[-1].name == "logits with an image", str(report)
    with pipeline(str(out), TurbomindEngineConfig(session_len=256)) as pipe:
        greedy = GenerationConfig(max_new_tokens=4, ignore_eos=True, top_k=1)
        assert len(pipe(("what", TALL), gen_config=greedy).token_ids) == 4
