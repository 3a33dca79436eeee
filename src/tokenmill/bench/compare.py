"""Engines side by side: rates, our rate over each peer's, and what share of the memory's measured rate a decode moved.

A share is of the bytes that a static workload must read at least: every step the weights (without the embedding table,
unless it is the head too) and the cache of every row. The time of its prompts counts too, so it is a lower bound.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.bench.report import append, record
from tokenmill.bench.timeline import Summary

OURS = "tokenmill"
HEADERS = ("case", "engine", "tok/s", "req/s", "TTFT p50", "ITL p50", "ITL p99", "ours/it", "of read", "of copy")


@dataclass(frozen=True, slots=True)
class Rates:
    """bytes/s of this machine's memory, measured (ceilings.py): of a copy, both ways counted, and of reading alone."""

    copy: float
    read: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a decode step reads: of weights, and of cache for every token of context."""

    weights: int
    token: int

    @staticmethod
    def of(about: Mapping[str, Any], config: Mapping[str, Any]) -> Traffic | None:
        """From what a runner says of itself, and config.json; None where it says nothing."""
        if "weights_bytes" not in about:
            return None
        width = 4 if about["dtype"] == "float32" else 2
        table = 0 if config.get("tie_word_embeddings") else config["vocab_size"] * config["hidden_size"] * width
        return Traffic(about["weights_bytes"] - table, about["token_bytes"])

    def bytes_per_s(self, summary: Summary) -> float | None:
        """None for all but static workloads that ran whole: only there is the number of steps known."""
        found = re.fullmatch(r"static:(\d+)x(\d+)x(\d+)", summary.case)
        if not found or summary.failed or not summary.seconds:
            return None
        batch, prompt, new = (int(n) for n in found.groups())
        context = new * prompt + new * (new - 1) // 2
        return (new * self.weights + batch * context * self.token) / summary.seconds


@dataclass(frozen=True, slots=True)
class Run:
    engine: str
    summary: Summary


def median_rate(runs: list[Run], engine: str, case: str) -> float | None:
    rates = [r.summary.new_tokens_per_s for r in runs if (r.engine, r.summary.case) == (engine, case)]
    return statistics.median(rates) if rates else None


def rows(runs: list[Run], traffic: Traffic | None = None, rates: Rates | None = None) -> list[tuple[str, ...]]:
    """A row per engine and case, cases in the order they first came; of several runs the one of median rate."""
    made = []
    for case in dict.fromkeys(run.summary.case for run in runs):
        ours = median_rate(runs, OURS, case)
        for engine in dict.fromkeys(run.engine for run in runs if run.summary.case == case):
            summary = middle([r.summary for r in runs if (r.engine, r.summary.case) == (engine, case)])
            ratio = "" if engine == OURS or not ours else over(ours, median_rate(runs, engine, case))
            made.append((*_cells(engine, summary), ratio, *shares(summary, traffic, rates)))
    return made


def middle(summaries: list[Summary]) -> Summary:
    return sorted(summaries, key=lambda s: s.new_tokens_per_s)[len(summaries) // 2]


def over(ours: float, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}x" if theirs else ""


def _cells(engine: str, summary: Summary) -> tuple[str, ...]:
    times = [summary.ttft_ms.p50, summary.itl_ms.p50, summary.itl_ms.p99]
    shown = [f"{t:.1f}" if t else "" for t in times]
    return (summary.case, engine, f"{summary.new_tokens_per_s:.1f}", f"{summary.requests_per_s:.2f}", *shown)


def shares(summary: Summary, traffic: Traffic | None, rates: Rates | None) -> tuple[str, str]:
    moved = traffic.bytes_per_s(summary) if traffic else None
    if moved is None or rates is None:
        return "", ""
    return f"{100 * moved / rates.read:.0f}%", f"{100 * moved / rates.copy:.0f}%"


def share_record(summary: Summary, traffic: Traffic | None, rates: Rates | None) -> dict[str, float]:
    """What a line of the results file says of it."""
    moved = traffic.bytes_per_s(summary) if traffic else None
    if moved is None or rates is None:
        return {}
    return {"read_share": moved / rates.read, "copy_share": moved / rates.copy, "bytes_per_s": moved}


@dataclass(slots=True)
class Ledger:
    """Runs of all engines; each is a line of `file` as soon as it is there, so that what is measured is not lost."""

    about: dict[str, Any]
    file: Path | None = None
    traffic: Traffic | None = None
    rates: Rates | None = None
    runs: list[Run] = field(default_factory=list)

    def add(self, engine: str, summary: Summary, version: str = "") -> None:
        self.runs.append(Run(engine, summary))
        if self.file:
            who = {"engine": engine, **({"version": version} if version else {})}
            shares = share_record(summary, self.traffic, self.rates)
            append(self.file, [{**record(summary, self.about), **who, **shares}])

    def rows(self) -> list[tuple[str, ...]]:
        return rows(self.runs, self.traffic, self.rates)
