"""The blocking entry of `serve proxy`, and its application: the API server's own layers before the proxy's routes."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI

from tokenmill import __version__
from tokenmill.errors import ConfigError
from tokenmill.serve.http import errors, health
from tokenmill.serve.http.auth import AuthLayer, KeyRing
from tokenmill.serve.http.banner import banner
from tokenmill.serve.http.options import ServerOptions
from tokenmill.serve.http.protocol import protocol_class
from tokenmill.serve.http.server import bind
from tokenmill.serve.http.transport import TransportLayer
from tokenmill.serve.proxy.nodes import STRATEGIES
from tokenmill.serve.proxy.options import ProxyOptions
from tokenmill.serve.proxy.routes import router
from tokenmill.serve.proxy.state import Proxy


def build_proxy(options: ProxyOptions) -> FastAPI:
    """The application. Its checks run while it is served."""
    proxy = Proxy(options)

    @asynccontextmanager
    async def checking(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(proxy.checker.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await proxy.client.aclose()

    app = FastAPI(title="Tokenmill proxy", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
                  redirect_slashes=False, lifespan=checking)  # fmt: skip
    app.state.proxy = proxy
    errors.install(app)
    app.include_router(router)
    app.add_api_route("/health/live", health.live)
    app.add_api_route("/version", health.show_version)
    app.add_middleware(AuthLayer, keys=KeyRing(options.api_keys))
    app.add_middleware(TransportLayer, limits=options.limits)
    return app


class ProxyServer(uvicorn.Server):
    """uvicorn's server, but a signal that was obeyed is not raised again: a drained proxy ends with 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def run_proxy(options: ProxyOptions, say: Callable[[str], Any] = sys.stdout.write) -> int:
    """Serves until a signal, then lets answers finish. Raises ConfigError for an address that cannot be used."""
    server, listener = proxy_server(options)
    shown = replace(ServerOptions(), host=options.host, api_keys=options.api_keys, tls=options.tls)
    say("\n".join(banner(shown, int(listener.getsockname()[1]), sys.stdout.isatty())) + "\n")
    sys.stdout.flush()
    server.run([listener])
    return 0


def proxy_server(options: ProxyOptions) -> tuple[uvicorn.Server, socket.socket]:
    """A server on its socket, not yet running."""
    if options.strategy not in STRATEGIES:
        raise ConfigError(f"there is no strategy {options.strategy!r}; there are {', '.join(STRATEGIES)}")
    listener = bind(replace(ServerOptions(), host=options.host, port=options.port))
    key, certificate = options.tls or (None, None)
    config = uvicorn.Config(
        build_proxy(options), http=protocol_class(options.limits), ws="none", lifespan="on",
        log_level=options.log_level, h11_max_incomplete_event_size=options.limits.header_bytes,
        timeout_keep_alive=options.keep_alive_s, timeout_graceful_shutdown=int(options.drain_timeout_s),
        server_header=False, proxy_headers=False, ssl_keyfile=key, ssl_certfile=certificate,
    )  # fmt: skip
    return ProxyServer(config), listener
