"""The blocking entry: bind, answer health at once, load the model, serve, drain, end.

`run_server(factory, options)` returns once the server has ended by itself or by a signal, and raises what the factory
raised where the model could not be loaded, or EngineDeadError where the engine is gone. First SIGTERM or SIGINT: no
new work, running answers finish within `drain_timeout_s`, whatever then remains is aborted. A second signal ends within
two seconds.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from signal import SIGINT, SIGTERM, signal
from typing import Any

import uvicorn

from tokenmill.api.contract import TextEngine
from tokenmill.errors import ConfigError
from tokenmill.log import get_logger
from tokenmill.serve.http.admin import admin_of
from tokenmill.serve.http.app import build_app
from tokenmill.serve.http.banner import banner
from tokenmill.serve.http.options import ServerOptions, check
from tokenmill.serve.http.protocol import protocol_class
from tokenmill.serve.http.register import stay_registered
from tokenmill.serve.http.service import Phase, Service
from tokenmill.serve.http.watch import until_lost

Factory = Callable[[], Awaitable[TextEngine]]
# After the drain: how long answers that were aborted may take to say so, and the engine to close.
_LAST_WORDS_S = 1.0
_CLOSE_S = 10.0
_BACKLOG = 2048


def run_server(factory: Factory, options: ServerOptions, say: Callable[[str], Any] = sys.stdout.write) -> int:
    """Serves until told to stop. The process's exit code: 0, or 1 where a second signal cut answers off.

    `factory` is awaited on the server's event loop, while health is answered already: it must do heavy loading in a
    thread. Raises ConfigError for options or an address that cannot be used, and whatever `factory` raises.
    """
    server = HttpServer(factory, options)
    sys_color = sys.stdout.isatty()
    say("\n".join(banner(options, server.port, sys_color)) + "\n")
    sys.stdout.flush()
    server.run()
    return 1 if server.force_exit else 0


class HttpServer(uvicorn.Server):
    """uvicorn with our protocol, our signals, and a model that loads while it already answers."""

    def __init__(self, factory: Factory, options: ServerOptions) -> None:
        self.options = check(options)
        self.service = Service(options)
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self._factory = factory
        self._socket = bind(options)
        self._admin = admin_of(self.service, options)
        self._loading: asyncio.Task[None] | None = None
        self._registered: asyncio.Task[None] | None = None
        self._drain_until_s: float | None = None
        self._aborted = False
        super().__init__(_uvicorn_config(self.service))

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Blocks until the server has ended; raises what loading the model raised."""
        super().run(sockets=sockets or [self._socket])
        if self.failure is not None:
            raise self.failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        scheme = "https" if self.options.tls else "http"
        self._log("Uvicorn running on %s://%s:%d (Press CTRL+C to quit)", scheme, self.options.host, self.port)
        if self._admin is not None:
            await self._admin.open()
        self._loading = asyncio.create_task(self._load())

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until_s is not None and not self.should_exit:
            self._drain()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._registered is not None:
            self._registered.cancel()
            await asyncio.gather(self._registered, return_exceptions=True)
        await super().shutdown(sockets)
        if self._admin is not None:
            await self._admin.close()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        if self.service.loaded:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5 if self.force_exit else _CLOSE_S):
                    await self.service.engine.close()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """First call: drain. Second: leave. A plain function, as it runs inside a signal handler."""
        if self._drain_until_s is not None:
            self.force_exit = True
            self.should_exit = True
            # Whatever hangs (an engine step, a thread) must not keep the process.
            _exit_after(_LAST_WORDS_S)
            return
        self.service.phase = Phase.DRAINING
        self._drain_until_s = time.monotonic() + self.options.drain_timeout_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn's, but a signal that was obeyed is not raised again: a drained server ends with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal(sig, self.handle_exit) for sig in (SIGTERM, SIGINT)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal(sig, handler)

    def stop(self) -> None:
        """What a first signal does, from any thread."""
        self.handle_exit(SIGTERM, None)

    async def _load(self) -> None:
        try:
            engine = await self._factory()
            await self.service.attach(engine)
        except Exception as error:  # noqa: BLE001 - carried to run(), which raises it in the caller
            self.failure = error
            self.should_exit = True
            return
        self._log("Serving %s", engine.name)
        if self.options.proxy_url is not None:
            self._registered = asyncio.create_task(stay_registered(self.options, self.port, engine.name))
        self.ready.set()
        lost = await until_lost(self.service)
        get_logger().error("%s", lost)
        self.failure = lost
        self.should_exit = True

    def _drain(self) -> None:
        assert self._drain_until_s is not None
        late_s = time.monotonic() - self._drain_until_s
        if self.service.in_flight == 0 or late_s > _LAST_WORDS_S:
            self.should_exit = True
        elif late_s > 0 and not self._aborted:
            self._aborted = True
            get_logger().warning("drain timeout: aborting %d answers", len(self.service.live))
            self.service.abort_all()

    def _log(self, message: str, *values: object) -> None:
        uvicorn.server.logger.info(message, *values)


def bind(options: ServerOptions) -> socket.socket:
    """The listening socket. Raises ConfigError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        # Already now: whoever reads the address off our first lines may connect at once, and waits until we accept.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or "not available"
        raise ConfigError(
            f"cannot listen on {options.host}:{options.port} ({reason}); choose another --server-name or --server-port"
        ) from None
    return listener


def _uvicorn_config(service: Service) -> uvicorn.Config:
    options = service.options
    key, certificate = options.tls or (None, None)
    return uvicorn.Config(
        build_app(service),
        http=protocol_class(options.limits),
        ws="none",
        lifespan="off",
        log_level=options.log_level,
        h11_max_incomplete_event_size=options.limits.header_bytes,
        timeout_keep_alive=options.keep_alive_s,
        timeout_graceful_shutdown=1,
        server_header=False,
        proxy_headers=False,
        ssl_keyfile=key,
        ssl_certfile=certificate,
    )


def _exit_after(delay_s: float) -> None:
    """Ends the process for sure; a daemon, so that a server that leaves in time is not held by it."""
    timer = threading.Timer(delay_s, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


@contextmanager
def background(factory: Factory, options: ServerOptions, timeout_s: float = 60.0) -> Iterator[HttpServer]:
    """A server in a thread of this process, ready when entered and ended when left. Raises what loading raised."""
    server = HttpServer(factory, options)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as error:  # noqa: BLE001 - carried to the entering thread
            failures.append(error)
        finally:
            server.ready.set()

    thread = threading.Thread(target=run, name="tokenmill-http", daemon=True)
    thread.start()
    if not server.ready.wait(timeout_s):
        raise TimeoutError(f"the server was not ready within {timeout_s:g} s")
    if failures:
        raise failures[0]
    try:
        yield server
    finally:
        server.stop()
        thread.join(options.drain_timeout_s + _CLOSE_S)
