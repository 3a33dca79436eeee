"""`tokenmill serve proxy` and servers that register with it, each in a process of its own; one of them is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from tests.support.http_server import PATIENCE_S, wait_for
from tests.support.server_process import ROOT, echo_server

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@contextmanager
def proxy_process() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tokenmill", "serve", "proxy", "--server-name", "127.0.0.1", "--server-port", "0",
               "--strategy", "min_observed_latency", "--disable-cache-status"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+:\d+", line)
        assert found is not None, line
        yield found[0], process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_servers_behind_a_proxy_come_and_are_killed() -> None:
    with proxy_process() as (url, proxy):
        wait_for(lambda: _status(url) is not None)
        with echo_server("--proxy-url", url) as one, echo_server("--proxy-url", url) as two:
            wait_for(lambda: set(_status(url) or ()) == {one.url, two.url})
            for _ in range(4):
                assert httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=PATIENCE_S).status_code == 200
            one.process.kill()
            for _ in range(6):
                reply = httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=PATIENCE_S)
                assert reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"] == "hihi"
            two.process.send_signal(signal.SIGTERM)
            assert two.process.wait(PATIENCE_S) == 0
            wait_for(lambda: two.url not in (_status(url) or {two.url: 0}))
            assert httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=PATIENCE_S).status_code == 503
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(PATIENCE_S) == 0


def _status(url: str) -> dict[str, object] | None:
    try:
        return dict(httpx.get(f"{url}/nodes/status", timeout=5).json())
    except httpx.HTTPError:
        return None
