"""A proxy in a thread of the test's process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from tests.support.http_server import PATIENCE_S, wait_for
from tokenmill.serve.proxy.options import ProxyOptions
from tokenmill.serve.proxy.server import proxy_server
from tokenmill.serve.proxy.state import Proxy

LOOPBACK = ProxyOptions(host="127.0.0.1", port=0, check_s=0.1, drain_timeout_s=1)


@dataclass
class LiveProxy:
    proxy: Proxy
    url: str
    client: httpx.Client

    def add(self, url: str, **status: Any) -> httpx.Response:
        return self.client.post("/nodes/add", json={"url": url} | ({"status": status} if status else {}))

    def status(self) -> dict[str, Any]:
        return dict(self.client.get("/nodes/status").json())


@contextmanager
def proxying(*urls: str, **options: Any) -> Iterator[LiveProxy]:
    """A proxy before the servers at `urls`, ready when entered."""
    server, listener = proxy_server(replace(LOOPBACK, **options))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    keys = options.get("api_keys") or ("none",)
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE_S, headers={"Authorization": f"Bearer {keys[0]}"}) as client:
            live = LiveProxy(server.config.app.state.proxy, url, client)  # type: ignore[union-attr]
            for node in urls:
                reply = live.add(node)
                assert reply.status_code == 200, reply.text
            yield live
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
