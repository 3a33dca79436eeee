"""An engine in a process of its own, seen from its parent: starts it, talks to it, and notices its end at once.

The two share an unnamed pair of connected unix sockets: no path that others could find, nothing left behind. The child
is a fresh interpreter (CUDA forbids forks) that looks for modules where this one does, and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from typing import Any

from tokenmill.engine import wire
from tokenmill.engine.link import CLOSE_S, CLOSED, Listener, Order, Setup
from tokenmill.errors import ConfigError, EngineDeadError, RequestError
from tokenmill.log import get_logger
from tokenmill.types import Request

BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from tokenmill.engine.child import main; sys.exit(main(int(sys.argv[2])))"
)
EXIT_S = 2.0


class ProcessLink:
    """`process` is there for tests and for whoever must know its id."""

    def __init__(self, setup: Setup, listener: Listener) -> None:
        if setup.grammars is not None and not isinstance(setup.grammars, str):
            raise ConfigError("a grammar compiler cannot cross to another process; name its factory, module:function")
        self._setup = setup
        self._listener = listener
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOT, json.dumps(sys.path), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        self._sock = ours
        self._ended: str | None = None
        self._hearing: asyncio.Task[None] | None = None

    async def open(self) -> dict[str, Any]:
        """Waits for the runner; what it says of itself. Raises what the child could not start by."""
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(sock=self._sock)
            self._send(self._start_record())
            first = await self._read()
            if isinstance(first, wire.Ready):
                self._hearing = asyncio.create_task(self._hear())
                return first.about
            if isinstance(first, wire.Failed):
                raise wire.failure(first)
            raise EngineDeadError(f"the engine's process ended while it started ({await self._how_it_ended()})")
        except BaseException:
            self.process.kill()
            # By its transport: closed under it, the number would be the next socket's, which then hears nothing.
            getattr(self, "_writer", self._sock).close()
            await asyncio.shield(asyncio.to_thread(self.process.wait))
            raise

    def _start_record(self) -> wire.Start:
        setup = self._setup
        grammars = setup.grammars if isinstance(setup.grammars, str) else ""
        level = logging.getLevelName(get_logger().getEffectiveLevel())
        return wire.Start(setup.factory, setup.config, grammars, level)

    # ---- what comes back

    async def _read(self) -> wire.FromEngine | None:
        try:
            head = await self._reader.readexactly(wire.LENGTH.size)
            return wire.read_from_engine(await self._reader.readexactly(wire.body_length(head)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _hear(self) -> None:
        """Until the child is gone; the listener hears of that whatever happens here."""
        reason = "the engine's process ended"
        try:
            while (record := await self._read()) is not None:
                self._pass_on(record)
            reason = self._ended or f"the engine's process ended ({await self._how_it_ended()}); start it again"
        except Exception as error:
            reason = f"the engine's answers cannot be read: {error}"
            self.process.kill()
            raise
        finally:
            self._writer.close()
            self._listener.hear_end(reason)

    def _pass_on(self, record: wire.FromEngine) -> None:
        if isinstance(record, wire.Outputs):
            self._listener.hear(wire.step_outputs(record))
        elif isinstance(record, wire.TellStats):
            self._listener.hear_stats(record.number, record.stats)
        elif isinstance(record, wire.Obeyed):
            failed = record.failure
            self._listener.hear_obeyed(record.number, None if failed is None else wire.failure(failed))
        elif isinstance(record, wire.Ended):
            self._ended = f"the engine has stopped: {record.failure}" if record.failure else CLOSED

    async def _how_it_ended(self) -> str:
        """The socket closes a moment before the process can be waited for."""
        for _ in range(int(EXIT_S / 0.02)):
            if (status := self.process.poll()) is not None:
                return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            await asyncio.sleep(0.02)
        return "it closed its socket"

    # ---- what goes there

    def _send(self, record: wire.ToEngine) -> None:
        if not self._writer.is_closing():
            self._writer.write(wire.pack(record))

    def submit(self, handle: int, request: Request) -> None:
        try:
            self._send(wire.Submit(handle, request))
        except wire.WireError as error:
            raise RequestError(f"the request cannot be sent to the engine: {error}") from error

    def abort(self, handle: int) -> None:
        self._send(wire.Abort(handle))

    def ask_stats(self, number: int) -> None:
        self._send(wire.AskStats(number))

    def control(self, number: int, order: Order) -> None:
        self._send(wire.Control(number, order.op, order.level, order.tags))

    async def close(self) -> None:
        """Asks the child to end, and ends it where it does not within `CLOSE_S`."""
        self._send(wire.Close())
        assert self._hearing is not None
        done, _ = await asyncio.wait([self._hearing], timeout=CLOSE_S)
        if not done:
            get_logger().warning("the engine's process did not end within %.0f s; it is killed", CLOSE_S)
            self.process.kill()
            await asyncio.wait([self._hearing])
        await asyncio.to_thread(self._reap)

    def _reap(self) -> None:
        try:
            self.process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
