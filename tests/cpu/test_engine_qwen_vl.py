"""Pictures in rows and columns through scheduler and runner: every drawn token is transformers' best one.

However prompts are cut, batched, preempted or found in the cache. transformers runs the whole prompt and answer at
once; a token counts as its best one where no other has a logit that is higher by more than `NEAR`, so that nothing
depends on how a machine rounds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.pictures import data_url, encoded, picture

from tokenmill.api.build import open_text_engine
from tokenmill.api.session import ServedModel
from tokenmill.cli.main import main
from tokenmill.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from tokenmill.engine.client import start_engine
from tokenmill.engine.contract import StepOutputs
from tokenmill.engine.core import Core
from tokenmill.engine.scheduler import Scheduler
from tokenmill.errors import RequestError
from tokenmill.models import qwen2_5_vl
from tokenmill.models.parity import Probe, check_parity
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import load_whole_twin
from tokenmill.runner.runner import make_runner
from tokenmill.types import Chunk, Finish, MediaRef, Request, Sampling, StepOutput, Stop, TextRequest
from tokenmill.vision.qwen_vl import Patching

RUNNER = "tokenmill.runner.runner:make_runner"
CONTEXT, NEW, NEAR = 500, 8, 1e-3
GRIDS = {"small": (2, 2), "wide": (3, 9), "tall": (11, 5)}
# Text lengths and pictures in turn.
PROMPTS: dict[str, list[int | str]] = {
    "text": [21],
    "one": [9, "wide", 12],
    "one again": [9, "wide", 12],
    "another": [9, "tall", 4],
    "first": ["small", 5],
    "last": [6, "tall"],
    "three": [5, "tall", 2, "wide", 11, "small", 1],
    "the same twice": [1, "small", 3, "small", 3],
}


def patches(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).integers(0, 256, (4 * prod(GRIDS[name]), 3, 14, 14), np.uint8)


def ids_of(prompt: list[int | str]) -> tuple[list[int], list[tuple[str, int]]]:
    """Token ids, and each picture with its offset."""
    ids: list[int] = []
    shown = []
    for part in prompt:
        if isinstance(part, int):
            ids += [(len(ids) * 7 + i * 13) % 400 + 3 for i in range(part)]
        else:
            shown.append((part, len(ids)))
            ids += [CONTEXT] * prod(GRIDS[part])
    return ids, shown


def request(name: str, folder: Path, new: int = NEW) -> Request:
    ids, shown = ids_of(PROMPTS[name])
    media = tuple(MediaRef(im, offset, prod(GRIDS[im]), str(folder / im), GRIDS[im]) for im, offset in shown)
    return Request(name, tuple(ids), Sampling(temperature=0.0), Stop(new), media=media)


@torch.inference_mode()
def check_best(twin: Any, ids: list[int], answer: list[int], pieces: list[np.ndarray], grids: list[Any]) -> None:
    """Each token of the answer is the best one behind what stands before it."""
    whole = torch.tensor(ids + answer)
    if pieces:
        logits = twin.logits(whole, torch.from_numpy(np.concatenate(pieces)), grids)
    else:
        logits = twin.model(input_ids=whole[None]).logits[0]
    before = logits[len(ids) - 1 : -1]
    drawn = before.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert (before.max(1).values - drawn).max() < NEAR


def check_answer(twin: Any, name: str, answer: StepOutput, new: int = NEW) -> None:
    ids, shown = ids_of(PROMPTS[name])
    assert answer.finish is Finish.LENGTH and len(answer.token_ids) == new, name
    check_best(twin, ids, list(answer.token_ids), [patches(im) for im, _ in shown], [GRIDS[im] for im, _ in shown])


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_tiny(request.param, tmp_path_factory.mktemp(request.param))
    for name in GRIDS:
        (path / name).write_bytes(patches(name).tobytes())
    return path


@pytest.fixture(scope="module")
def twin(folder: Path) -> Any:
    return load_whole_twin(folder, CONTEXT)


def config(folder: Path, rows: int, tokens: int, blocks: int = 64, tiles: int | None = None) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(str(folder)),
        cache=CacheConfig(num_blocks=blocks, image_tiles=tiles),
        scheduler=SchedulerConfig(max_rows=rows, max_step_tokens=tokens),
    )


@pytest.mark.parametrize(
    ("rows", "tokens", "tiles"), [(8, 256, None), (4, 7, 4), (3, 64, 1)], ids=["batched", "chunks of 7", "little room"]
)
async def test_answers_equal_transformers(folder: Path, twin: Any, rows: int, tokens: int, tiles: int | None) -> None:
    engine = await start_engine(RUNNER, config(folder, rows, tokens, tiles=tiles), own_process=False)
    names = list(PROMPTS)
    answers = await asyncio.gather(*(engine.score(request(name, folder)) for name in names[:4]))
    answers += await asyncio.gather(*(engine.score(request(name, folder)) for name in names[4:]))
    again = await engine.score(request("three", folder))
    stats = await engine.stats()
    await engine.close()
    for name, answer in zip([*names, "three"], [*answers, again], strict=True):
        check_answer(twin, name, answer)
    assert again.usage.cached_tokens > 64 and stats.cached_tokens > 0


def test_preempted_answers_equal_transformers(folder: Path, twin: Any) -> None:
    """Two long answers over a cache that holds one and a half of them: the younger runs its own tokens again."""
    runner = make_runner(config(folder, 2, 256, blocks=11))
    scheduler = Scheduler(
        runner.capacity(), SchedulerConfig(), prefix_caching=True, draw_seed=lambda: 7, clock=lambda: 0.0
    )
    drawn: dict[int, list[int]] = {0: [], 1: []}

    def hear(outputs: StepOutputs) -> None:
        for handle, tokens in zip(outputs.handles, np.split(outputs.tokens, np.cumsum(outputs.counts)), strict=False):
            drawn[int(handle)] += tokens.tolist()

    core = Core(runner, scheduler, hear, overlap=False)
    for handle, name in enumerate(("one", "another")):
        scheduler.submit(request(name, folder, 40), handle)
    for _ in range(200):
        if scheduler.idle:
            break
        core.turn()
    runner.close()
    for handle, name in enumerate(("one", "another")):
        check_answer(twin, name, StepOutput(tuple(drawn[handle]), Finish.LENGTH), 40)
    assert scheduler.idle and scheduler.desk.totals.preemptions > 0


async def test_what_does_not_fit_is_refused(folder: Path) -> None:
    engine = await start_engine(RUNNER, config(folder, 2, 64, tiles=1), own_process=False)
    big = MediaRef("b", 0, 65, "/b", (5, 13))
    for media, words in (
        (big, "holds 64"), (MediaRef("b", 0, 6, "/b"), "rows and columns"), (MediaRef("b", 0, 6, "/b", (2, 4)), "rows"),
        (MediaRef("b", 0, 6, "/b", (6, 1, 1)), "rows"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=words):
            await engine.score(Request("x", (5,) * 80, Sampling(temperature=0.0), Stop(2), media=(media,)))
    await engine.close()


# ---- from messages on


@pytest.fixture
async def served(folder: Path) -> AsyncIterator[ServedModel]:
    engine = await open_text_engine(config(folder, 4, 256, blocks=128))
    assert isinstance(engine, ServedModel)
    yield engine
    await engine.close()


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


async def ask(engine: ServedModel, *messages: dict[str, Any]) -> list[Chunk]:
    wish = TextRequest("a", messages, sampling=Sampling(temperature=0.0), max_new_tokens=NEW, ignore_eos=True)
    return [chunk async for chunk in engine.generate(wish)]


async def test_talks_with_pictures_equal_transformers(folder: Path, twin: Any, served: ServedModel) -> None:
    """One picture; then two more beside it in the history. The text is what transformers' tokenizer makes of it."""
    from transformers import AutoTokenizer

    shapes = [(150, 60), (40, 80), (99, 130)]
    pictures = [picture(*shape, seed) for seed, shape in enumerate(shapes)]
    first = {"role": "user", "content": [image(encoded(pictures[0])), text("What is this?"), text(" And why?")]}
    said = {"role": "assistant", "content": "a gradient"}
    then = {"role": "user", "content": [text("And these"), *(image(encoded(p)) for p in pictures[1:]), text("?")]}
    patching = Patching(14, 3136, 62720)
    cuts = [patching.cut(p) for p in pictures]
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.convert_tokens_to_ids("<|image_pad|>") == CONTEXT == qwen2_5_vl.TINY["image_token_id"]
    for messages, count in (((first,), 1), ((first, said, then), 3)):
        chunks = await ask(served, *messages)
        prompt = theirs.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        for _, grid in cuts[:count]:
            prompt = prompt.replace("<|image_pad|>", "<|placeholder|>" * prod(grid), 1)
        ids = theirs(prompt.replace("<|placeholder|>", "<|image_pad|>"), add_special_tokens=False)["input_ids"]
        assert list(chunks[0].prompt_ids or ()) == ids
        answer = [token for chunk in chunks for token in chunk.token_ids]
        check_best(twin, ids, answer, [pixels for pixels, _ in cuts[:count]], [grid for _, grid in cuts[:count]])
        assert count == 1 or chunks[-1].usage.cached_tokens > 0


async def test_a_picture_has_limits_of_its_own(served: ServedModel) -> None:
    """In the part, as Qwen's own examples have them, or beside the URL."""
    good = image(encoded(picture(150, 150)))
    small = {"type": "image_url", "image_url": {**good["image_url"], "max_pixels": 6272}}
    counts = []
    for part in (good, {**good, "max_pixels": 6272}, small):
        wish = TextRequest("count", ({"role": "user", "content": [part]},))
        counts.append((await served.codec.prompt_ids(wish, ())).count(CONTEXT))
    assert counts == [25, 4, 4]


async def test_refusals(served: ServedModel) -> None:
    good = image(encoded(picture(60, 45)))
    cases: list[tuple[Any, str]] = [
        ([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}], "videos are not taken"),
        ([good, {"type": "video", "video": "/a.mp4"}], "videos are not taken"),
        ([image(encoded(picture(1, 201)))], "at most 200 times"),
        ([good, text("<|image_pad|>")], "may not stand in text"),
        ([{**good, "max_pixels": 100}], "must lie in this order between 3136 and 62720"),
        ([{**good, "min_pixels": 62721}], "min_pixels 62721"),
        ([{**good, "max_pixels": "all"}], "max_pixels must be a positive whole number"),
    ]
    for content, words in cases:
        with pytest.raises(RequestError, match=words) as caught:
            await ask(served, {"role": "user", "content": content})
        assert caught.value.status == 400
    assert (await ask(served, {"role": "user", "content": [good]}))[-1].finish is Finish.LENGTH


def test_the_language_part_is_quantized(folder: Path, tmp_path: Path) -> None:
    """The folder loads without a flag, computes what its numbers stand for, and says what stayed plain."""
    out = tmp_path / "awq"
    small = ["--calib-samples", "2", "--calib-seqlen", "48", "--w-group-size", "64"]
    assert main(["lite", "auto_awq", str(folder), *small, "--work-dir", str(out)]) == 0
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "awq" and "visual" in said["modules_to_not_convert"]
    assert (out / "preprocessor_config.json").read_bytes() == (folder / "preprocessor_config.json").read_bytes()
    report = check_parity(out, Probe(tokens=20))
    assert report.ok, str(report)
