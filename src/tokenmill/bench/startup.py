"""From the start of a process to the first token of the first request: seconds of every phase, for ours and for peers.

The request has 128 tokens and gets one. Nothing is warmed up but what an engine warms by itself, and a phase's time is
the parent's clock, so that the interpreter's own start is in it.
"""

from __future__ import annotations

from tokenmill.bench.peers.contract import Job, Settings
from tokenmill.bench.peers.parent import Told
from tokenmill.bench.workload import parse

WORKLOAD = "static:1x128x1"
HEADERS = ("phase", "s", "of which")


def job(settings: Settings, vocab_size: int) -> Job:
    return Job("", settings, tuple(parse(WORKLOAD, vocab_size)))


def phases(told: Told) -> dict[str, float]:
    """Consecutive phases; their sum is the time to the first token."""
    marks = {"interpreter": "started", "imports": "loaded", "model": "ready", "first token": "run"}
    found, before = {}, 0.0
    for name, event in marks.items():
        if event in told.at_s:
            found[name], before = told.at_s[event] - before, told.at_s[event]
    return found


def rows(told: Told) -> list[tuple[str, ...]]:
    inside = ", ".join(f"{name} {seconds:.2f}" for name, seconds in told.phases.items())
    made = [(name, f"{s:.2f}", inside if name == "model" else "") for name, s in phases(told).items()]
    return [*made, ("process start to first token", f"{sum(phases(told).values()):.2f}", "")]
