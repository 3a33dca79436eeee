"""Runs a job in a child, keeps what it said with the time it was said at, and ends everything it started.

A child that fails, hangs or dies is a `Failed` with its last words, never an exception: the other engines go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from tokenmill import env
from tokenmill.bench.peers.contract import Event, Job, unpack_line
from tokenmill.bench.timeline import Spread, Summary, summarize

CHILD = (sys.executable, "-m", "tokenmill.bench.peers.child")
SOURCE = Path(__file__).parents[3]
LAST_WORDS = 600
# Below a folder of packages: what an engine's own libraries look for and do not find by themselves.
LIBRARIES = {"lmdeploy": ("nvidia/cublas/lib", "nvidia/cuda_runtime/lib")}
Process = subprocess.Popen[str]


@dataclass(slots=True)
class Told:
    """What came of a job. `at_s`: seconds from the start of the process to each kind's first event."""

    engine: str
    version: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    at_s: dict[str, float] = field(default_factory=dict)
    summaries: list[Summary] = field(default_factory=list)
    failure: str = ""

    def take(self, event: Event, after_s: float) -> None:
        kind = event["event"]
        self.at_s.setdefault(kind, after_s)
        self.version = event.get("version", self.version)
        self.phases = event.get("phases", self.phases)
        self.failure = event.get("error", self.failure)
        if kind == "run":
            self.summaries.append(summary_of(event))


def summary_of(event: Event) -> Summary:
    found = summarize(event["case"], [unpack_line(raw) for raw in event["timelines"]])
    if event["streams"]:
        return found
    unknown = Spread.of([])
    return replace(found, ttft_ms=unknown, itl_ms=unknown)


def end_group(process: Process) -> None:
    """The process and all it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def started(
    command: list[str], engine: str, packages: Path | None, words: IO[str], output: IO[str] | int = subprocess.PIPE
) -> Iterator[Process]:
    """A process in a session of its own; whatever it started ends with the block. `words` gets its stderr."""
    folders = [packages] if packages else []
    libraries = [folder / name for folder in folders for name in LIBRARIES.get(engine, ())]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=words, text=True, start_new_session=True,
        env=env.for_peer([*folders, SOURCE], libraries),
    )  # fmt: skip
    try:
        yield process
    finally:
        end_group(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def run_job(job: Job, packages: Path | None = None, limit_s: float = 900.0) -> Told:
    """The job in a child, for `limit_s` at most. `packages`: a folder with the peer's own packages."""
    told, began = Told(job.engine), time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
        with started(list(CHILD), job.engine, packages, words) as process:
            timer = threading.Timer(limit_s, end_group, [process])
            timer.start()
            try:
                _listen(process, job, told, began)
                code = process.wait()
            finally:
                timer.cancel()
        if len(told.summaries) < len(job.workloads) and not told.failure:
            late = time.monotonic() - began >= limit_s
            why = f"stopped after {limit_s:g} s" if late else f"ended with code {code}"
            told.failure = f"{why}: {last_words(words)}"
    return told


def _listen(process: Process, job: Job, told: Told, began: float) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(job.encode() + "\n")
    for line in process.stdout:
        told.take(json.loads(line), time.monotonic() - began)


def last_words(file: IO[str]) -> str:
    file.seek(0)
    return " ".join(file.read()[-LAST_WORDS:].split()) or "it said nothing"
