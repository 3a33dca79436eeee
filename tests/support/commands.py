"""Commands as a user runs them: in this process where that is enough, in their own where they serve or read a pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenmill.api.ports import free_port
from tokenmill.cli.demo_server import wait_until_ready

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tokenmill"]
TIMEOUT_S = 600.0


def environment(**more: str) -> dict[str, str]:
    """One thread, no hub, and this checkout's package."""
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def run(*words: str, typed: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`tokenmill words` to its end, with `typed` on its stdin."""
    return subprocess.run(
        [*COMMAND, *words], input=typed, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(),
        cwd=cwd, check=False,
    )  # fmt: skip


@dataclass
class Served:
    """A running server; `ended` is its exit code once the block is left."""

    url: str
    process: subprocess.Popen[str]
    ended: int | None = None
    said: str = ""
    told: str = ""


@contextmanager
def serving(model: str, *flags: str, cwd: Path | None = None, dash: str = "-") -> Iterator[Served]:
    """`tokenmill serve api_server model`, ready when entered and told to drain when left."""
    port = free_port()
    command = [*COMMAND, "serve", "api_server", model]
    command += [f"--server{dash}name", "127.0.0.1", f"--server{dash}port", str(port)]
    process = subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=cwd
    )
    served = Served(f"http://127.0.0.1:{port}", process)
    try:
        wait_until_ready(process, served.url)
        yield served
        process.send_signal(signal.SIGTERM)
        served.said, served.told = process.communicate(timeout=TIMEOUT_S)
        served.ended = process.returncode
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
