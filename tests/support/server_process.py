"""A server in a process of its own, started by the command line as users start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


@dataclass
class ServerProcess:
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def wait_ready(self, within_s: float = 300.0) -> None:
        deadline = time.monotonic() + within_s
        # A server that loads answers late on a busy machine.
        while httpx.get(f"{self.url}/health/ready", timeout=within_s).status_code != 200:
            assert self.process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, f"not ready within {within_s:g} s"
            time.sleep(0.02)


@contextmanager
def server_process(command: list[str], *flags: str) -> Iterator[ServerProcess]:
    """`command` with any free port of loopback and `flags`, ready for work."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    process = subprocess.Popen(
        [*command, "--server-name", "127.0.0.1", "--server-port", "0", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT,
    )
    server = ServerProcess(process)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            server.lines.append(line.rstrip("\n"))
            if line.startswith("auth:"):
                break
        found = re.search(r"http://\S+:\d+", "\n".join(server.lines))
        assert found is not None, server.lines
        server.url = found[0]
        server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def echo_server(*flags: str, engine: str = "echo") -> AbstractContextManager[ServerProcess]:
    """`tokenmill serve api_server demo FLAGS` on a small engine (tests/support/echo_server.py)."""
    command = [sys.executable, "-m", "tests.support.echo_server", engine, "serve", "api_server", "demo"]
    return server_process(command, *flags)
