"""A live server on loopback for tests, and the leak check that every server test ends with."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx

from tests.support.fake_text import FakeTextEngine
from tokenmill.api.contract import TextEngine
from tokenmill.serve.http import HttpServer, ServerOptions, background

# How long a test waits for what must come: nothing on an idle machine, and a busy one takes what it takes.
PATIENCE_S = 60.0
LOOPBACK = ServerOptions(host="127.0.0.1", port=0, log_level="warning", drain_timeout_s=5.0)
HELLO = {"model": "fake", "messages": [{"role": "user", "content": "hello world"}]}


def endless_engine(**fields: Any) -> FakeTextEngine:
    """10 ms a word, and room for answers that outlast every wait."""
    return FakeTextEngine(**{"step_s": 0.01, "max_model_tokens": 1_000_000, **fields})


@dataclass
class Live:
    """A running server, its engine, and ways to talk to it."""

    server: HttpServer
    engine: FakeTextEngine
    client: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def chat(self, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=HELLO | fields)

    def complete(self, prompt: Any = "hello world", **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": "fake", "prompt": prompt} | fields)

    def raw(self, data: bytes, timeout_s: float = 10.0) -> bytes:
        """Everything the server says to `data` until it closes or falls silent."""
        with self.connect(timeout_s) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            return drain(connection)

    def connect(self, timeout_s: float = 10.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=timeout_s)

    def settle(self) -> None:
        """Waits until nothing is left anywhere of any request, or fails with what is."""
        wait_for(lambda: not self.left(), show=self.left)

    def left(self) -> dict[str, Any]:
        service = self.server.service
        admission = service.admission
        assert admission is not None
        counts = {
            "engine": sorted(self.engine.live),
            "live": sorted(service.live),
            "sessions": sorted(service.sessions),
            "places": admission.running,
            "waiting": admission.waiting,
            "in_flight": service.in_flight,
        }
        return {name: value for name, value in counts.items() if value}


@contextmanager
def running(engine: FakeTextEngine | None = None, **options: Any) -> Iterator[Live]:
    engine = engine or FakeTextEngine()

    async def factory() -> FakeTextEngine:
        return engine

    with (
        background(factory, replace(LOOPBACK, **options)) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=PATIENCE_S) as client,
    ):
        live = Live(server, engine, client)
        yield live
        live.settle()
    assert engine.closed


@contextmanager
def serving(engine: TextEngine, **options: Any) -> Iterator[tuple[HttpServer, httpx.Client]]:
    """A server on any text engine, without the fake's leak check."""

    async def factory() -> TextEngine:
        return engine

    with background(factory, replace(LOOPBACK, **options)) as server, client_of(server, 30) as client:
        yield server, client


def client_of(server: HttpServer, timeout_s: float) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=timeout_s)


def wait_for(
    condition: Callable[[], bool], within_s: float = PATIENCE_S, show: Callable[[], Any] = lambda: ""
) -> float:
    """Seconds until `condition` held; fails after `within_s`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within_s, f"not within {within_s} s: {show()}"
        time.sleep(0.005)
    return time.monotonic() - started


def drain(connection: socket.socket) -> bytes:
    parts = []
    try:
        while data := connection.recv(65536):
            parts.append(data)
    except (TimeoutError, ConnectionResetError):
        pass
    return b"".join(parts)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """One whole HTTP/1.1 request."""
    lines = [f"POST {path} HTTP/1.1", "Host: test", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body
