"""Images from messages down to the model: template, several images, history, refusals; what is held is given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.pictures import data_url, encoded, picture, png_bomb

from tokenmill.api.build import open_text_engine
from tokenmill.api.session import ServedModel
from tokenmill.config import CacheConfig, EngineConfig, MediaConfig, ModelConfig, SchedulerConfig
from tokenmill.errors import RequestError
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import load_whole_twin
from tokenmill.types import Chunk, Finish, Sampling, TextRequest
from tokenmill.vision.tiles import Tiling, cut

WIDE, TALL = picture(150, 60, 1), picture(40, 80, 2)
TILING = Tiling(56)
SYSTEM = (
    "<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
    "英文名叫InternVL, 是一个有用无害的人工智能助手。<|im_end|>"
)
NEW = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("internvl", tmp_path_factory.mktemp("internvl"))


@pytest.fixture
async def served(folder: Path, tmp_path: Path) -> AsyncIterator[ServedModel]:
    config = EngineConfig(
        model=ModelConfig(str(folder)), cache=CacheConfig(num_blocks=128), scheduler=SchedulerConfig(max_rows=4),
        media=MediaConfig(folder=str(tmp_path)),
    )
    engine = await open_text_engine(config)
    assert isinstance(engine, ServedModel)
    yield engine
    await engine.close()


def image(data: bytes, kind: str = "png", **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data, kind), **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


async def ask(engine: ServedModel, *messages: dict[str, Any], name: str = "a") -> list[Chunk]:
    wish = TextRequest(name, messages, sampling=Sampling(temperature=0.0), max_new_tokens=NEW, ignore_eos=True)
    return [chunk async for chunk in engine.generate(wish)]


def drawn(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def held(engine: ServedModel) -> int:
    desk = engine._parts.codec.images
    assert desk is not None
    return sum(one.uses for one in desk._store._held.values())


@torch.inference_mode()
def transformers_answer(folder: Path, engine: ServedModel, prompt: str, tiles: list[np.ndarray]) -> list[int]:
    """The authors' prompt, written here by hand, and transformers' greedy answer to it."""
    tokenizer = engine._parts.codec.tokenizer
    context = tokenizer.vocabulary.token_id("<IMG_CONTEXT>")
    for each in tiles:
        prompt = prompt.replace("<image>", "<img>" + "<IMG_CONTEXT>" * len(each) * 4 + "</img>", 1)
    ids = tokenizer.encode(prompt)
    twin = load_whole_twin(folder, context or 0)
    shown = torch.from_numpy(np.concatenate(tiles))
    for _ in range(NEW):
        ids.append(int(twin.logits(torch.tensor(ids), shown)[-1].argmax()))
    return ids[-NEW:]


async def test_answers_equal_transformers(folder: Path, served: ServedModel) -> None:
    wide, tall = cut(WIDE, TILING), cut(TALL, TILING)
    assert (len(wide), len(tall)) == (11, 3)
    one = await ask(served, user(image(encoded(WIDE)), text("What is this?")))
    prompt = SYSTEM + "<|im_start|>user\n<image>\nWhat is this?<|im_end|><|im_start|>assistant\n"
    assert drawn(one) == transformers_answer(folder, served, prompt, [wide])
    low = image(encoded(WIDE, "BMP"), "bmp", detail="low")
    two = await ask(served, user(text("Compare"), image(encoded(TALL)), low))
    prompt = SYSTEM + "<|im_start|>user\nCompare\n<image>\n<image><|im_end|><|im_start|>assistant\n"
    six = cut(WIDE, Tiling(56, max_tiles=6))
    assert drawn(two) == transformers_answer(folder, served, prompt, [tall, six]) and len(six) != len(wide)


async def test_images_stay_in_the_history_and_hit_the_cache(folder: Path, served: ServedModel) -> None:
    first = user(image(encoded(TALL)), text("What is this?"))
    await ask(served, first)
    said = {"role": "assistant", "content": "a gradient"}
    chunks = await ask(served, first, said, user(text("And this?"), image(encoded(WIDE))), name="b")
    prompt = (
        SYSTEM + "<|im_start|>user\n<image>\nWhat is this?<|im_end|><|im_start|>assistant\na gradient<|im_end|>"
        "<|im_start|>user\nAnd this?\n<image><|im_end|><|im_start|>assistant\n"
    )
    tiles = [cut(TALL, TILING), cut(WIDE, TILING)]
    assert drawn(chunks) == transformers_answer(folder, served, prompt, tiles)
    assert chunks[-1].usage.cached_tokens > 0
    assert held(served) == 0


async def test_files_under_the_folder_only(served: ServedModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(TALL))
    by_url = await ask(served, user(image(encoded(TALL)), text("x")))
    part = {"type": "image_url", "image_url": f"file://{tmp_path}/a.png"}
    assert drawn(await ask(served, user(part, text("x")))) == drawn(by_url)
    with pytest.raises(RequestError, match="no such image"):
        await ask(served, user({"type": "image_url", "image_url": {"url": "/etc/hostname"}}))


async def test_refusals_leave_nothing_behind(served: ServedModel) -> None:
    good = image(encoded(WIDE))
    cases: list[tuple[Any, str]] = [
        ([image(png_bomb(12_000, 12_000, 600))], "pixels"),
        ([good, image(b"nonsense")], "known format"),
        ([good, text("<IMG_CONTEXT>")], "may not stand in text"),
        ([good] * 17, "at most 16"),
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}], "not fetched from this host"),
        ([good, image(encoded(WIDE), max_dynamic_patch=99)], "from 1 to 24"),
        ([good] * 12, "shorten the prompt"),
    ]
    for content, words in cases:
        with pytest.raises(RequestError, match=words) as caught:
            await ask(served, user(*content))
        assert caught.value.status == 400
    with pytest.raises(RequestError, match="text only"):
        await ask(served, {"role": "system", "content": [good]})
    assert held(served) == 0
    assert (await ask(served, user(good)))[-1].finish is Finish.LENGTH


async def test_abandoned_requests_give_their_images_back(served: ServedModel) -> None:
    wish = TextRequest("gone", (user(image(encoded(WIDE))),), max_new_tokens=200, ignore_eos=True)
    stream = served.generate(wish)
    await anext(stream)
    assert held(served) == 1
    await stream.aclose()  # type: ignore[attr-defined]
    assert held(served) == 0
    wish = TextRequest("cancelled", (user(image(encoded(picture(900, 901, 5)))),), max_new_tokens=200, ignore_eos=True)

    async def collect() -> list[Chunk]:
        return [chunk async for chunk in served.generate(wish)]

    slow = asyncio.ensure_future(collect())
    await asyncio.sleep(0.02)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    for _ in range(1200):
        if not held(served) and served._parts.codec.images._threads._work_queue.empty():
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    assert held(served) == 0


async def test_counting_tokens_holds_no_image(served: ServedModel) -> None:
    wish = TextRequest("count", (user(image(encoded(TALL)), text("x")),))
    ids = await served.codec.prompt_ids(wish, ())
    context = served._parts.codec.tokenizer.vocabulary.token_id("<IMG_CONTEXT>")
    assert list(ids).count(context or -1) == 3 * 4 and held(served) == 0


async def test_text_only_by_wish(folder: Path) -> None:
    config = EngineConfig(model=ModelConfig(str(folder), language_only=True), cache=CacheConfig(num_blocks=64))
    engine = await open_text_engine(config)
    assert isinstance(engine, ServedModel) and not engine.limits.takes_images
    with pytest.raises(RequestError, match="text only"):
        await ask(engine, user(image(encoded(TALL))))
    assert (await ask(engine, user(text("Hi"))))[-1].finish is Finish.LENGTH
    await engine.close()


