"""An engine in this process: the loop on a thread of its own, which also makes, runs and closes the runner.

Whatever a runner keeps per thread (torch's modes and thread counts) is therefore set where it is used. The thread is a
daemon: an interpreter that ends without closing its engine is not held up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

from tokenmill.engine.assemble import compiler_of, describe, look_up, make_core
from tokenmill.engine.contract import Stats
from tokenmill.engine.core import Core
from tokenmill.engine.link import CLOSE_S, CLOSED, Listener, Order, Setup
from tokenmill.log import get_logger, safe
from tokenmill.types import Request


class ThreadLink:
    def __init__(self, setup: Setup, listener: Listener) -> None:
        self._setup = setup
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._core: Core | None = None
        self._closing = False
        self._started: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._thread = Thread(target=self._live, name="engine", daemon=True)

    async def open(self) -> dict[str, Any]:
        """Waits for the runner; what it says of itself. Raises what its factory raises."""
        self._thread.start()
        try:
            return await self._started
        except BaseException:
            self._closing = True
            raise

    # ---- on the engine's thread

    def _live(self) -> None:
        setup = self._setup
        try:
            runner = look_up(setup.factory)(setup.config)
            grammars = setup.grammars
            compiler = compiler_of(grammars, setup.config) if isinstance(grammars, str) else grammars
            core = make_core(runner, setup.config, partial(self._tell, self._listener.hear), compiler)
            about = describe(runner)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised again where the engine was started
            self._tell(self._start_failed, error)
            return
        self._core = core
        if self._closing:
            core.close()
        self._tell(self._start_done, about)
        self._tell(self._listener.hear_end, self._run(core))

    @staticmethod
    def _run(core: Core) -> str:
        """Runs the loop to its end; why it ended."""
        try:
            core.run()
        except BaseException as error:  # noqa: BLE001 - the last thing a thread can do is to say why it ends
            get_logger().error("the engine's thread failed", exc_info=error)
            return safe(f"the engine has stopped: {type(error).__name__}: {error}", 300)
        return f"the engine has stopped: {core.failure}" if core.failure else CLOSED

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The event loop is closed: nobody will ever listen again.
            if self._core is not None:
                self._core.close()

    def _start_done(self, about: dict[str, Any]) -> None:
        if not self._started.done():
            self._started.set_result(about)

    def _start_failed(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)

    # ---- on the event loop

    def _post(self, name: str, *arguments: Any) -> None:
        if self._core is not None:
            self._core.post(getattr(self._core, name), *arguments)

    def submit(self, handle: int, request: Request) -> None:
        self._post("submit", request, handle)

    def abort(self, handle: int) -> None:
        self._post("abort", handle)

    def ask_stats(self, number: int) -> None:
        self._post("tell_stats", partial(self._reply, number))

    def control(self, number: int, order: Order) -> None:
        self._post(order.op, order.level if order.op == "sleep" else order.tags, partial(self._obeyed, number))

    def _obeyed(self, number: int, error: Exception | None) -> None:
        self._tell(self._listener.hear_obeyed, number, error)

    def _reply(self, number: int, stats: Stats) -> None:
        self._tell(self._listener.hear_stats, number, stats)

    async def close(self) -> None:
        if self._core is not None:
            self._core.close()
        await asyncio.to_thread(self._thread.join, CLOSE_S)
        if self._thread.is_alive():
            get_logger().warning("the engine's thread still runs a step after %.0f s; it is left behind", CLOSE_S)
