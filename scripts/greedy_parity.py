#!/usr/bin/env python3
"""Greedy answers of the engine against transformers, fp32 on the CPU: the same tokens however the work is cut.

    python scripts/greedy_parity.py FOLDER [--prompts 64] [--tokens 128] [--kv auto] [--tp 1]

Each prompt is answered alone, in batches of 32, in steps of 7 tokens, on prefix hits, and under forced preemption.
The reference is transformers' own cached generation, one prompt at a time (InternLM2 regrouped into its Llama). An
answer that differs counts as agreement only where every token of it is within 1e-4 of the reference's best logit at its
place, given the same tokens before; how many such answers there were is printed. Exit code 1: something differs, or a
mode never met what it is for (a hit, a preemption).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenmill.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, ParallelConfig, SchedulerConfig
from tokenmill.engine.client import EngineClient, start_engine
from tokenmill.engine.contract import Stats
from tokenmill.models.spec import read_spec
from tokenmill.models.twin import load_twin
from tokenmill.types import Request, Sampling, Stop

RUNNER = "tokenmill.runner.runner:make_runner"
TIE = 1e-4
BLOCK = 16
LONGEST_PROMPT = 96
# Sequences whose tokens the cache holds where preemption is forced.
CRAMPED = 4


@dataclass(frozen=True)
class Mode:
    """How the work is cut. `ahead`: requests in the engine at once; `passes`: the last is compared; `meets`: a counter
    of `Stats` that must not stay 0."""

    name: str
    rows: int = 32
    step_tokens: int = 512
    ahead: int = 64
    passes: int = 1
    cramped: bool = False
    meets: str = ""


MODES = (
    Mode("alone", ahead=1),
    Mode("batch of 32", ahead=32),
    Mode("steps of 7 tokens", rows=7, step_tokens=7),
    Mode("prefix hits", passes=2, meets="cached_tokens"),
    Mode("preemption", cramped=True, meets="preemptions"),
)


@dataclass
class Outcome:
    mode: Mode
    identical: int = 0
    tied: int = 0
    different: int = 0
    stats: Stats = Stats()
    seconds: float = 0.0

    @property
    def met(self) -> bool:
        return not self.mode.meets or getattr(self.stats, self.mode.meets) > 0

    @property
    def good(self) -> bool:
        return self.different == 0 and self.met


class Reference:
    """transformers' answers, and its opinion of others'."""

    def __init__(self, folder: Path, prompts: list[tuple[int, ...]], count: int):
        self.model, self.prompts = load_twin(folder), prompts
        self.answers = [self.generate(prompt, count) for prompt in prompts]

    @torch.inference_mode()
    def generate(self, prompt: tuple[int, ...], count: int) -> list[int]:
        """Greedy with its own cache; no token ends it."""
        ids, cache, out = torch.tensor([prompt]), None, []
        for _ in range(count):
            step = self.model(ids, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            ids = step.logits[:, -1].argmax(-1, keepdim=True)
            out.append(int(ids))
        return out

    @torch.inference_mode()
    def gap(self, prompt: tuple[int, ...], answer: list[int]) -> float:
        """The most that any token of the answer lies below the best logit of its place."""
        logits = self.model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
        mine = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        return float((logits.amax(-1) - mine).max())

    def judge(self, outcome: Outcome, answers: list[list[int]]) -> None:
        for prompt, expected, answer in zip(self.prompts, self.answers, answers, strict=True):
            if answer == expected:
                outcome.identical += 1
            elif len(answer) == len(expected) and self.gap(prompt, answer) <= TIE:
                outcome.tied += 1
            else:
                outcome.different += 1


def make_prompts(vocab: int, count: int, longest: int) -> list[tuple[int, ...]]:
    """Random tokens of many lengths; every fourth begins like the one before it, so that prefixes are shared."""
    draw = np.random.default_rng(20)
    prompts: list[tuple[int, ...]] = []
    for number in range(count):
        fresh = tuple(draw.integers(3, vocab, int(draw.integers(3, longest + 1))).tolist())
        if number % 4 == 3:
            fresh = (prompts[-1][: longest - 3] + fresh)[:longest]
        prompts.append(fresh)
    return prompts


def engine_config(folder: Path, mode: Mode, longest: int, asked: argparse.Namespace) -> EngineConfig:
    whole = -(-longest // BLOCK)
    blocks = CRAMPED * whole if mode.cramped else (mode.rows + 64) * whole
    return EngineConfig(
        ModelConfig(str(folder), dtype="float32", max_model_tokens=longest),
        CacheConfig(asked.kv, BLOCK, num_blocks=blocks, prefix_caching=mode.passes > 1 or mode.cramped),
        SchedulerConfig(mode.rows, mode.step_tokens),
        ParallelConfig(asked.tp),
        KernelConfig("cpu"),
    )


async def answer_all(engine: EngineClient, mode: Mode, prompts: list[tuple[int, ...]], count: int) -> list[list[int]]:
    room = asyncio.Semaphore(mode.ahead)

    async def answer(number: int, prompt: tuple[int, ...]) -> list[int]:
        request = Request(f"r{number}", prompt, Sampling(temperature=0.0), Stop(max_new_tokens=count))
        async with room:
            return list((await engine.score(request)).token_ids)

    answers: list[list[int]] = []
    for _ in range(mode.passes):
        answers = await asyncio.gather(*(answer(number, prompt) for number, prompt in enumerate(prompts)))
    return answers


async def run_mode(config: EngineConfig, mode: Mode, prompts: list[tuple[int, ...]], count: int) -> tuple[Any, Stats]:
    engine = await start_engine(RUNNER, config, own_process=False)
    try:
        return await answer_all(engine, mode, prompts, count), await engine.stats()
    finally:
        await engine.close()


def compare(folder: Path, asked: argparse.Namespace) -> list[Outcome]:
    """Every mode's outcome. Prompts and answers stay within the trained length, where all rotations agree."""
    spec = read_spec(folder)
    longest = min(LONGEST_PROMPT, spec.max_model_tokens - asked.tokens)
    prompts = make_prompts(spec.vocab_size, asked.prompts, longest)
    reference = Reference(folder, prompts, asked.tokens)
    outcomes = []
    for mode in MODES:
        config = engine_config(folder, mode, longest + asked.tokens, asked)
        started = time.perf_counter()
        answers, stats = asyncio.run(run_mode(config, mode, prompts, asked.tokens))
        outcomes.append(Outcome(mode, stats=stats, seconds=time.perf_counter() - started))
        reference.judge(outcomes[-1], answers)
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    lines = [f"{'mode':20}{'identical':>10}{'tied':>6}{'differ':>8}{'hits':>8}{'preempted':>11}{'steps':>8}{'s':>8}"]
    for one in outcomes:
        counts = f"{one.identical:10}{one.tied:6}{one.different:8}"
        met = "" if one.met else f"  never met: {one.mode.meets}"
        stats = f"{one.stats.cached_tokens:8}{one.stats.preemptions:11}{one.stats.steps:8}{one.seconds:8.1f}"
        lines.append(f"{one.mode.name:20}{counts}{stats}{met}")
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="a checkpoint folder of a dense or quantized llama or internlm2")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--kv", default="auto", help="cache kind; a quantized one is not expected to agree")
    parser.add_argument("--tp", type=int, default=1)
    return parser.parse_args(arguments)


def main() -> int:
    asked = parse(sys.argv[1:])
    outcomes = compare(asked.folder, asked)
    size = f"{asked.prompts} prompts x {asked.tokens} greedy tokens"
    print(f"{asked.folder.name}: {size} against transformers, tp {asked.tp}")
    print(table(outcomes))
    return 0 if all(one.good for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
