"""When tokens came, and what follows from it: TTFT, ITL, end-to-end times, rates. Plain data, seconds.

A request's times are those of its messages; a message may bring several tokens. ITL is the time between messages
divided by the tokens the later one brought, counted once per token, so that no engine gains by sending rarely.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class Timeline:
    """One request: when it was sent, and (time, tokens) of every message that brought tokens."""

    prompt_tokens: int
    sent_s: float = field(default_factory=time.perf_counter)
    messages: list[tuple[float, int]] = field(default_factory=list)
    ended_s: float = 0.0
    error: str | None = None

    def got(self, tokens: int) -> None:
        if tokens:
            self.messages.append((time.perf_counter(), tokens))

    def end(self, error: str | None = None) -> None:
        self.ended_s, self.error = time.perf_counter(), error

    @property
    def new_tokens(self) -> int:
        return sum(tokens for _, tokens in self.messages)

    @property
    def ttft_s(self) -> float:
        return self.messages[0][0] - self.sent_s

    def gaps_s(self) -> list[float]:
        """One inter-token time for every token after the first message."""
        gaps: list[float] = []
        for (before, _), (now, tokens) in zip(self.messages, self.messages[1:], strict=False):
            gaps += [(now - before) / tokens] * tokens
        return gaps


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of a time, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @staticmethod
    def of(seconds: list[float]) -> Spread:
        if not seconds:
            return Spread(0.0, 0.0, 0.0, 0.0)
        values = np.asarray(seconds) * 1e3
        p50, p90, p99 = (float(np.percentile(values, p)) for p in PERCENTILES)
        return Spread(float(values.mean()), p50, p90, p99)


@dataclass(frozen=True, slots=True)
class Summary:
    """A workload, measured. Rates count completed requests only; `failed` says how many were not."""

    case: str
    requests: int
    failed: int
    seconds: float
    prompt_tokens: int
    new_tokens: int
    ttft_ms: Spread
    itl_ms: Spread
    total_ms: Spread
    first_error: str | None = None

    @property
    def new_tokens_per_s(self) -> float:
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def requests_per_s(self) -> float:
        return (self.requests - self.failed) / self.seconds if self.seconds else 0.0


def summarize(case: str, timelines: list[Timeline]) -> Summary:
    """What a workload's requests amount to, from the first sent to the last ended."""
    good = [t for t in timelines if t.error is None]
    errors = [t.error for t in timelines if t.error is not None]
    seconds = max((t.ended_s for t in timelines), default=0.0) - min((t.sent_s for t in timelines), default=0.0)
    return Summary(
        case=case,
        requests=len(timelines),
        failed=len(errors),
        seconds=seconds,
        prompt_tokens=sum(t.prompt_tokens for t in good),
        new_tokens=sum(t.new_tokens for t in good),
        ttft_ms=Spread.of([t.ttft_s for t in good if t.messages]),
        itl_ms=Spread.of([gap for t in good for gap in t.gaps_s()]),
        total_ms=Spread.of([t.ended_s - t.sent_s for t in good]),
        first_error=errors[0] if errors else None,
    )
