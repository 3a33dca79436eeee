"""What a benchmark leaves behind: JSON lines with the machine's print, and rows of a table."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from tokenmill import __version__
from tokenmill.bench.timeline import Summary

HEADERS = ("case", "req", "s", "tok/s", "req/s", "TTFT p50", "p90", "p99", "ITL p50", "p90", "p99")


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on. `device` is the name of the GPU, or `cpu`."""
    return {
        "device": device,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "tokenmill": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def record(summary: Summary, about: dict[str, Any]) -> dict[str, Any]:
    """One line of a results file. `about` says machine, model and settings."""
    rates = {"new_tokens_per_s": summary.new_tokens_per_s, "requests_per_s": summary.requests_per_s}
    return {**asdict(summary), **rates, **about}


def append(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def row(summary: Summary) -> tuple[str, ...]:
    """One row under HEADERS; times in milliseconds."""
    done = summary.requests - summary.failed
    count = str(done) if not summary.failed else f"{done}/{summary.requests}"
    times = [t for spread in (summary.ttft_ms, summary.itl_ms) for t in (spread.p50, spread.p90, spread.p99)]
    rates = f"{summary.seconds:.2f}", f"{summary.new_tokens_per_s:.1f}", f"{summary.requests_per_s:.2f}"
    return (summary.case, count, *rates, *(f"{t:.1f}" for t in times))
