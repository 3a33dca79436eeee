"""The scheduler over the real runner: batched, cut, cached or preempted, a greedy answer is the model's own.

The reference is dense attention over the whole token list (`TinyModel.reference_logits`), with no cache and no batch.
"""

from __future__ import annotations

import asyncio

import pytest
import torch
from tests.support.tiny_runner import VOCAB, TinyModel

from tokenmill.config import CacheConfig, EngineConfig, SchedulerConfig
from tokenmill.engine.client import start_engine
from tokenmill.engine.contract import Stats
from tokenmill.types import Finish, Request, Sampling, Stop

MODEL = TinyModel(torch.device("cpu"))
PREFIX = [(i * 13 + 5) % VOCAB for i in range(22)]


def greedy(prompt: tuple[int, ...], new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(int(MODEL.reference_logits(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def asked() -> list[Request]:
    """Half of them share a prefix; lengths and answers differ."""
    prompts = [tuple(PREFIX[: (i % 2) * 22] + [(i * 7 + j * 3) % VOCAB for j in range(3 + i)]) for i in range(14)]
    return [
        Request(f"r{i}", prompt, Sampling(temperature=0.0), Stop(8 + i % 5 * 4)) for i, prompt in enumerate(prompts)
    ]


ANSWERS = {one.id: greedy(one.prompt_ids, one.stop.max_new_tokens) for one in asked()}


@pytest.mark.parametrize(
    ("rows", "blocks", "tokens", "overlap", "own"),
    [
        (8, 128, 64, True, False), (8, 128, 64, True, True), (8, 128, 64, False, False),
        (6, 128, 7, True, False), (6, 30, 16, True, False), (1, 30, 5, False, False),
    ],
    ids=["batched", "own process", "no overlap", "chunks of 7", "preempted", "one at a time"],
)  # fmt: skip
async def test_answers_do_not_depend_on_how_they_are_run(
    rows: int, blocks: int, tokens: int, overlap: bool, own: bool
) -> None:
    config = EngineConfig(
        cache=CacheConfig(num_blocks=blocks),
        scheduler=SchedulerConfig(max_rows=rows, max_step_tokens=tokens, overlap=overlap),
    )
    engine = await start_engine("tests.support.tiny_engine:tiny", config, own_process=own)
    first = asked()[:4]
    outputs = dict(zip([one.id for one in first], await asyncio.gather(*map(engine.score, first)), strict=True))
    rest = asked()[4:]
    outputs |= zip([one.id for one in rest], await asyncio.gather(*map(engine.score, rest)), strict=True)
    stats = await engine.stats()
    await engine.close()
    for name, output in outputs.items():
        assert list(output.token_ids) == ANSWERS[name] and output.finish is Finish.LENGTH, name
    check_stats(stats, blocks)


def check_stats(stats: Stats, blocks: int) -> None:
    """The settings did what they are there for, and nothing is left."""
    assert stats.running == 0 and stats.blocks_free == stats.blocks_total == blocks
    assert stats.cached_tokens > 0
    if blocks < 128 and stats.max_rows > 1:
        assert stats.preemptions > 0
