"""Images through scheduler and runner: greedy answers equal those of transformers' InternVL on the same tiles.

However prompts are cut, batched or found in the cache, and however little room the encoder has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenmill.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from tokenmill.engine.client import start_engine
from tokenmill.errors import ConfigError, RequestError
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import load_whole_twin
from tokenmill.runner.runner import make_runner
from tokenmill.types import Finish, MediaRef, Request, Sampling, Stop

RUNNER = "tokenmill.runner.runner:make_runner"
CONTEXT, TILE_TOKENS, SIZE, NEW = 550, 4, 56, 6
# Tiles of each image; the prompts as text lengths and images in turn.
IMAGES = {"one": 1, "three": 3, "five": 5}
PROMPTS: dict[str, list[int | str]] = {
    "text": [21],
    "a": [9, "three", 12],
    "a again": [9, "three", 12],
    "a with another image": [9, "five", 4],
    "first": ["one", 5],
    "last": [6, "five"],
    "two": [5, "five", 2, "three", 11],
    "side by side": [5, "one", "three", 3],
    "the same twice": ["one", 3, "one", 3],
}


def tiles(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).integers(0, 256, (IMAGES[name], SIZE, SIZE, 3), np.uint8)


def ids_of(prompt: list[int | str]) -> tuple[tuple[int, ...], list[tuple[str, int, int]]]:
    """Token ids, and (image, offset, vectors) of each image."""
    ids: list[int] = []
    media = []
    for part in prompt:
        if isinstance(part, int):
            ids += [(len(ids) * 7 + i * 13) % 500 + 3 for i in range(part)]
        else:
            media.append((part, len(ids), IMAGES[part] * TILE_TOKENS))
            ids += [CONTEXT] * media[-1][2]
    return tuple(ids), media


def request(name: str, folder: Path) -> Request:
    ids, media = ids_of(PROMPTS[name])
    refs = tuple(MediaRef(image, offset, count, str(folder / image)) for image, offset, count in media)
    return Request(name, ids, Sampling(temperature=0.0), Stop(NEW), media=refs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_tiny("internvl", tmp_path_factory.mktemp("internvl"))
    for name in IMAGES:
        (path / name).write_bytes(tiles(name).tobytes())
    return path


@pytest.fixture(scope="module")
def wanted(folder: Path) -> Callable[[str], list[int]]:
    """transformers' greedy answers, the whole prompt anew for each token."""
    twin = load_whole_twin(folder, CONTEXT)

    @cache
    @torch.inference_mode()
    def answer(name: str) -> list[int]:
        ids, media = ids_of(PROMPTS[name])
        tokens = list(ids)
        shown = torch.from_numpy(np.concatenate([tiles(image) for image, _, _ in media])) if media else None
        for _ in range(NEW):
            given = torch.tensor(tokens)
            if shown is None:
                logits = twin.model(input_ids=given[None]).logits[0]
            else:
                logits = twin.logits(given, shown)
            tokens.append(int(logits[-1].argmax()))
        return tokens[len(ids) :]

    return answer


@pytest.mark.parametrize(
    ("rows", "tokens", "image_tiles", "own"),
    [(8, 256, None, False), (8, 256, None, True), (4, 7, 13, False), (2, 64, 13, False)],
    ids=["batched", "own process", "chunks of 7", "little room"],
)
async def test_answers_equal_transformers(
    folder: Path, wanted: Callable[[str], list[int]], rows: int, tokens: int, image_tiles: int | None, own: bool
) -> None:
    config = EngineConfig(
        model=ModelConfig(str(folder)),
        cache=CacheConfig(num_blocks=64, image_tiles=image_tiles),
        scheduler=SchedulerConfig(max_rows=rows, max_step_tokens=tokens),
    )
    engine = await start_engine(RUNNER, config, own_process=own)
    asked = [request(name, folder) for name in PROMPTS]
    answers = await asyncio.gather(*map(engine.score, asked[:4]))
    answers += await asyncio.gather(*map(engine.score, asked[4:]))
    stats = await engine.stats()
    about = engine.about
    await engine.close()
    for one, answer in zip(asked, answers, strict=True):
        assert list(answer.token_ids) == wanted(one.id) and answer.finish is Finish.LENGTH, one.id
    assert len({tuple(wanted(name)) for name in ("a", "a with another image")}) == 2
    width, least = 128 * 4, 32 if image_tiles is None else image_tiles
    assert about["encoder_cache_bytes"] == least * TILE_TOKENS * width and stats.prompt_tokens > 0


async def test_a_missing_file_fails_its_request_only(folder: Path, wanted: Callable[[str], list[int]]) -> None:
    config = EngineConfig(model=ModelConfig(str(folder)), cache=CacheConfig(num_blocks=64))
    engine = await start_engine(RUNNER, config, own_process=False)
    gone = request("a", folder / "nowhere")
    short = folder / "short"
    short.mkdir(exist_ok=True)
    (short / "five").write_bytes(b"abc")
    bad, cut, good = await asyncio.gather(
        engine.score(gone), engine.score(request("last", short)), engine.score(request("two", folder))
    )
    assert bad.finish is cut.finish is Finish.ERROR and "not finite" in str(bad.error)
    assert list(good.token_ids) == wanted("two") or good.finish is Finish.ERROR
    # The next ones that show these images get them from a file that is there.
    for name in ("a", "last", "two"):
        assert list((await engine.score(request(name, folder))).token_ids) == wanted(name)
    await engine.close()


async def test_text_only_by_wish(folder: Path) -> None:
    config = EngineConfig(model=ModelConfig(str(folder), language_only=True), cache=CacheConfig(num_blocks=64))
    engine = await start_engine(RUNNER, config, own_process=False)
    with pytest.raises(RequestError, match="takes no images"):
        await engine.score(request("a", folder))
    assert len((await engine.score(request("text", folder))).token_ids) == NEW
    await engine.close()


def test_too_little_room_is_refused(folder: Path) -> None:
    config = EngineConfig(model=ModelConfig(str(folder)), cache=CacheConfig(num_blocks=64, image_tiles=12))
    with pytest.raises(ConfigError, match="may have 13"):
        make_runner(config)
