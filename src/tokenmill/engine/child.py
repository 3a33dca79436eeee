"""The engine's own process: started by `process.py`, it talks over the socket it was given and nothing else.

Main thread: runner and loop. Reader thread: what the parent says becomes calls in the loop's inbox; when the parent is
gone (end of file, or another parent process than at the start), the process ends within a moment, in the middle of a
step if need be. Ctrl-C and SIGTERM are the parent's business: a terminal sends them to both.

What exists once the engine is ready is never garbage: it is frozen, so that no collection during decoding walks it.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
from collections import deque
from functools import partial
from threading import Condition, Event, Thread

from tokenmill import log
from tokenmill.engine import wire
from tokenmill.engine.assemble import compiler_of, describe, look_up, make_core
from tokenmill.engine.contract import Stats, StepOutputs
from tokenmill.engine.core import Core

POLL_MS = 500
LAST_STEP_S = 1.0
LAST_WORDS_S = 5.0
# Young objects of a loop are few and short-lived; what is old is frozen.
GC_THRESHOLDS = (20_000, 50, 100)


class Outbox:
    """`send` never waits: what the socket does not take at once is sent by a thread. Once broken it sends nothing."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest: deque[memoryview] = deque()
        self._changed = Condition()
        self._broken = False
        Thread(target=self._drain, name="outbox", daemon=True).start()

    def send(self, record: wire.FromEngine) -> None:
        frame = memoryview(wire.pack(record))
        with self._changed:
            if self._broken:
                return
            if not self._rest:
                frame = frame[self._send_now(frame) :]
            if len(frame):
                self._rest.append(frame)
                self._changed.notify_all()

    def _send_now(self, frame: memoryview) -> int:
        try:
            return self._sock.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._break()
            return len(frame)

    def _break(self) -> None:
        """The parent is gone, as the reader will see."""
        self._broken = True
        self._rest.clear()

    def _drain(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rest)
                frame = self._rest[0]
            try:
                self._sock.sendall(frame)
            except OSError:
                with self._changed:
                    self._break()
                    self._changed.notify_all()
                return
            with self._changed:
                self._rest.popleft()
                self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._rest, seconds)


class Inlet:
    """Whole records from the parent; None once it is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._parent = os.getppid()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def read(self) -> wire.ToEngine | None:
        head = self._exactly(wire.LENGTH.size)
        body = self._exactly(wire.body_length(head)) if head else b""
        return wire.read_to_engine(body) if body else None

    def _exactly(self, count: int) -> bytes:
        """`count` bytes, or none at the end. Others may hold a dead parent's socket, so the parent is looked at."""
        parts: list[bytes] = []
        while count:
            if not self._poll.poll(POLL_MS):
                if os.getppid() != self._parent:
                    return b""
                continue
            part = self._sock.recv(count)
            if not part:
                return b""
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class Child:
    def __init__(self, sock: socket.socket) -> None:
        self.inlet = Inlet(sock)
        self.outbox = Outbox(sock)
        self.core: Core | None = None
        self.over = Event()

    def run(self) -> int:
        """The whole life; the exit status."""
        start = self.inlet.read()
        if not isinstance(start, wire.Start):
            return 1
        log.configure(start.log_level)
        Thread(target=self._listen, name="inlet", daemon=True).start()
        try:
            core = self._start(start)
        except Exception as error:  # noqa: BLE001 - the parent raises it again
            if not isinstance(error, wire.RAISED_AGAIN):
                log.get_logger().error("the engine could not start", exc_info=error)
            self.outbox.send(wire.failed_record(error))
            self.outbox.flush(LAST_WORDS_S)
            return 1
        return self._loop(core)

    def _start(self, start: wire.Start) -> Core:
        runner = look_up(start.factory)(start.config)
        compiler = compiler_of(start.grammars, start.config)
        core = make_core(runner, start.config, self._publish, compiler, frozen=True)
        ready = wire.Ready(describe(runner))
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self.core = core
        self.outbox.send(ready)
        return core

    def _loop(self, core: Core) -> int:
        try:
            core.run()
            failure = core.failure or ""
        except Exception as error:  # noqa: BLE001 - told to the parent
            log.get_logger().error("the engine's end failed", exc_info=error)
            failure = log.safe(f"{type(error).__name__}: {error}", 300)
        self.over.set()
        self.outbox.send(wire.Ended(failure))
        self.outbox.flush(LAST_WORDS_S)
        return 1 if failure else 0

    def _publish(self, outputs: StepOutputs) -> None:
        try:
            self.outbox.send(wire.outputs_record(outputs))
        except wire.WireError:
            # Logits or states of long prompts: one request's size must not end the loop, and so all others.
            for row in wire.by_row(outputs):
                self._publish_row(row)

    def _publish_row(self, row: StepOutputs) -> None:
        try:
            self.outbox.send(wire.outputs_record(row))
        except wire.WireError as error:
            log.get_logger().warning("an answer cannot be sent: %s", error)
            self.outbox.send(wire.outputs_record(wire.too_large(row)))
            if self.core is not None:
                self.core.abort(int(row.handles[0]))

    # ---- on the reader's thread

    def _listen(self) -> None:
        try:
            while (record := self.inlet.read()) is not None:
                self._obey(record)
        except (OSError, wire.WireError) as error:
            log.get_logger().error("the engine cannot understand its parent", exc_info=error)
        if self.core is not None:
            self.core.close()
            self.over.wait(LAST_STEP_S)
        os._exit(1)

    def _obey(self, record: wire.ToEngine) -> None:
        """The parent sends nothing between `Start` and `Ready` but its end."""
        core = self.core
        if core is None:
            raise wire.WireError(f"{type(record).__name__} came before the engine was ready")
        if isinstance(record, wire.Submit):
            core.post(core.submit, record.request, record.handle)
        elif isinstance(record, wire.Abort):
            core.post(core.abort, record.handle)
        elif isinstance(record, wire.AskStats):
            core.post(core.tell_stats, partial(self._tell_stats, record.number))
        elif isinstance(record, wire.Control):
            argument = record.level if record.op == "sleep" else record.tags
            core.post(core.sleep if record.op == "sleep" else core.wake, argument, partial(self._obeyed, record.number))
        elif isinstance(record, wire.Close):
            core.close()

    def _obeyed(self, number: int, error: Exception | None) -> None:
        self.outbox.send(wire.Obeyed(number, None if error is None else wire.failed_record(error)))

    def _tell_stats(self, number: int, stats: Stats) -> None:
        self.outbox.send(wire.TellStats(number, stats))


def main(descriptor: int) -> int:
    """Entered by the command line that `process.py` writes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return Child(socket.socket(fileno=descriptor)).run()
