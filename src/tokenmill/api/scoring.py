"""Mean cross-entropy of token sequences, through `Engine.score`.

A sequence longer than the context is cut into windows that overlap by half, so that every token but the first is
counted once and, behind the first window, with at least half a context before it.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tokenmill.engine.contract import Engine
from tokenmill.errors import RequestError
from tokenmill.types import Request, Sampling, Stop, Want


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [start, stop) run together; those from `count_from` on are counted."""

    start: int
    stop: int
    count_from: int


def windows(num_tokens: int, most: int) -> Iterator[Window]:
    start, counted = 0, 1
    while counted < num_tokens:
        stop = min(start + most, num_tokens)
        yield Window(start, stop, counted)
        start, counted = start + max(most // 2, 1), stop


async def cross_entropy(engine: Engine, ids: tuple[int, ...], most: int) -> float:
    """In nats per token, of all tokens but the first. Raises RequestError where a sequence has fewer than 2."""
    if len(ids) < 2 or most < 2:
        raise RequestError(f"a sequence of {len(ids)} tokens has nothing to score; it needs 2", param="input_ids")
    parts = [await _window(engine, ids, window) for window in windows(len(ids), most)]
    return math.fsum(value for part in parts for value in part) / (len(ids) - 1)


async def reward(engine: Engine, ids: tuple[int, ...]) -> float | None:
    """A reward model's score of a whole sequence; None where the model gives states instead."""
    output = await engine.score(
        Request(
            id=f"score-{uuid.uuid4().hex}",
            prompt_ids=ids,
            sampling=Sampling(temperature=0.0),
            stop=Stop(max_new_tokens=0),
            want=Want.POOL,
        )
    )
    pool = output.arrays.get("pool")
    if output.error is not None:
        raise RequestError(output.error, 500)
    if pool is None:
        return None
    values = np.frombuffer(pool.data, np.dtype(pool.dtype))
    return float(values[0]) if len(values) == 1 else None


async def _window(engine: Engine, ids: tuple[int, ...], window: Window) -> list[float]:
    output = await engine.score(
        Request(
            id=f"score-{uuid.uuid4().hex}",
            prompt_ids=ids[window.start : window.stop],
            sampling=Sampling(temperature=0.0),
            stop=Stop(max_new_tokens=0),
            want=Want.PROMPT_LOGPROBS,
        )
    )
    if output.error is not None or output.prompt_logprobs is None:
        raise RequestError(output.error or "the engine gave no log-probabilities", 500)
    wanted = output.prompt_logprobs[window.count_from - window.start :]
    return [-entry.logprob for entry in wanted if entry is not None]
