"""Perplexity of a model on text, through `Engine.score` only.

Windows as in the usual strided evaluation: each is at most `window` tokens, begins `stride` after the one before, and
counts only the tokens no earlier window counted, so that every token but the first is scored once, with as much
context as its window gives. Nothing depends on batching or on the prefix cache: log-probabilities of a prompt are
computed in full.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from tokenmill.engine.contract import Engine
from tokenmill.errors import ConfigError, RequestError
from tokenmill.types import Finish, Request, Sampling, Stop, Want

CONCURRENCY = 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, stop) run together; log-probabilities from `count_from` on are counted."""

    start: int
    stop: int
    count_from: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`nll` is the mean negative log-probability (nats) over `tokens` scored tokens."""

    nll: float
    tokens: int
    windows: int

    @property
    def value(self) -> float:
        return math.exp(self.nll)


def spans(num_tokens: int, window: int, stride: int) -> list[Span]:
    """The windows over a text. Raises ConfigError where stride or window cannot cover it."""
    if window < 2 or not 1 <= stride <= window:
        raise ConfigError(f"window is {window} and stride {stride}; they need 2 <= window and 1 <= stride <= window")
    found: list[Span] = []
    counted = 1  # the first token has nothing before it
    for start in range(0, num_tokens, stride):
        stop = min(start + window, num_tokens)
        # A window's own first token has no context in it.
        found.append(Span(start, stop, max(counted, start + 1)))
        counted = stop
        if stop == num_tokens:
            return found
    return found


async def span_nll(engine: Engine, ids: tuple[int, ...], span: Span, request_id: str) -> tuple[float, int]:
    """Sum of negative log-probabilities that a window counts, and how many they are."""
    request = Request(
        id=request_id,
        prompt_ids=ids[span.start : span.stop],
        sampling=Sampling(temperature=0.0),
        stop=Stop(max_new_tokens=0),
        want=Want.PROMPT_LOGPROBS,
    )
    output = await engine.score(request)
    if output.finish is Finish.ERROR or output.prompt_logprobs is None:
        raise RequestError(output.error or "the engine gave no log-probabilities", 500)
    wanted = output.prompt_logprobs[span.count_from - span.start :]
    values = [entry.logprob for entry in wanted if entry is not None]
    return -math.fsum(values), len(values)


async def perplexity(
    engine: Engine, ids: tuple[int, ...], window: int, stride: int, progress: Progress = lambda done, total: None
) -> Perplexity:
    """Perplexity of `ids`. At most CONCURRENCY windows are under way at once; `progress` hears of each."""
    if len(ids) < 2:
        raise ConfigError(f"the text has {len(ids)} tokens; perplexity needs at least 2")
    gate, done, windows = asyncio.Semaphore(CONCURRENCY), 0, list(spans(len(ids), window, stride))

    async def one(number: int, span: Span) -> tuple[float, int]:
        nonlocal done
        async with gate:
            part = await span_nll(engine, ids, span, f"ppl-{number}")
        done += 1
        progress(done, len(windows))
        return part

    parts = await asyncio.gather(*(one(n, span) for n, span in enumerate(windows)))
    tokens = sum(count for _, count in parts)
    return Perplexity(math.fsum(nll for nll, _ in parts) / tokens, tokens, len(parts))
