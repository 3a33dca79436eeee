"""Starts the other ranks of a replica and watches them: processes of this host, one socket pair each.

`start_ranks` runs `target(seat)` in size - 1 fresh interpreters and returns when all are up, before any collective, so
that a rank that cannot even start is told at once. A rank that ends while it should run is a failure of the replica:
`Ranks.failure` then says which and why, and `on_death` is called once, from the watching thread. A rank whose rank 0 is
gone ends itself: its end of the socket pair reads end-of-file.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import msgspec

from tokenmill.config import EngineConfig
from tokenmill.distributed.wire import CLOSE, CONFIG, FAILED, UP, Link
from tokenmill.errors import EngineDeadError, TokenmillError

START_S = 180.0
CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Seat:
    """What a rank is told at start."""

    rank: int
    size: int
    init_method: str
    config: EngineConfig
    link: Link


class Ranks:
    """Ranks 1 .. size - 1, as rank 0 sees them."""

    def __init__(self, target: str, config: EngineConfig):
        self.size = config.parallel.tp
        self._folder = tempfile.mkdtemp(prefix="tokenmill-ranks-")
        self.init_method = config.parallel.init_method or f"file://{self._folder}/store"
        self.failure: str | None = None
        self.on_death: Callable[[], None] = lambda: None
        self._closing = False
        self._lock = threading.Lock()
        self._members = [self._start(target, rank, config) for rank in range(1, self.size)]
        for rank, (process, link) in enumerate(self._members, 1):
            threading.Thread(target=self._watch, args=(rank, process, link), daemon=True).start()

    def wait_up(self) -> None:
        """Every rank has started; raises what the first that failed said."""
        for rank, (_, link) in enumerate(self._members, 1):
            try:
                frame = link.receive(START_S)
            except TimeoutError:
                raise EngineDeadError(f"rank {rank} did not start within {START_S:.0f} s") from None
            if frame is None or frame[0] != UP:
                raise EngineDeadError(f"rank {rank} ended while it started: {_reason(frame)}")

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """To every rank, in order. Raises EngineDeadError where one is gone."""
        self.check()
        for rank, (_, link) in enumerate(self._members, 1):
            try:
                link.send(kind, payload)
            except OSError as error:
                raise EngineDeadError(f"rank {rank} is gone: {error.strerror}") from error

    def check(self) -> None:
        if self.failure is not None:
            raise EngineDeadError(self.failure)

    def pids(self) -> list[int]:
        return [process.pid for process, _ in self._members]

    def close(self) -> None:
        """Asks every rank to end, and ends those that do not."""
        self._closing = True
        for process, link in self._members:
            if process.poll() is None:
                _try_send(link, CLOSE)
        for process, link in self._members:
            try:
                process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            link.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, target: str, rank: int, config: EngineConfig) -> tuple[subprocess.Popen[bytes], Link]:
        ours, theirs = socket.socketpair()
        # The search path as it is here, so that the same package is found.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from tokenmill.distributed.launch import enter; "
            f"enter({target!r}, {rank}, {self.size}, {self.init_method!r}, {theirs.fileno()})"
        )
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        theirs.close()
        link = Link(ours)
        _try_send(link, CONFIG, msgspec.json.encode(config))
        return process, link

    def _watch(self, rank: int, process: subprocess.Popen[bytes], link: Link) -> None:
        code = process.wait()
        with self._lock:
            if self._closing or self.failure is not None:
                return
            self.failure = f"rank {rank} of {self.size} ended with code {code}: {_last_words(link)}; start again"
        self.on_death()


def start_ranks(target: str, config: EngineConfig) -> Ranks:
    """Ranks that run `target` ("module:function"), all up."""
    ranks = Ranks(target, config)
    try:
        ranks.wait_up()
    except BaseException:
        ranks.close()
        raise
    return ranks


def enter(target: str, rank: int, size: int, init_method: str, descriptor: int) -> None:
    """A rank's process: runs `target`, tells rank 0 why it failed, and never outlives rank 0."""
    link = Link(socket.socket(fileno=descriptor))
    frame = link.receive(START_S)
    if frame is None:
        os._exit(1)
    threading.Thread(target=_outlive_nobody, args=(os.getppid(),), daemon=True).start()
    seat = Seat(rank, size, init_method, msgspec.json.decode(frame[1], type=EngineConfig), link)
    module, _, function = target.partition(":")
    code = 0
    try:
        getattr(import_module(module), function)(seat)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # noqa: BLE001 - told to rank 0, which raises it
        text = str(error) if isinstance(error, TokenmillError) else repr(error)
        _try_send(link, FAILED, text.encode()[:4096])
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads may be inside a collective that nobody will answer.
    os._exit(code)


def _outlive_nobody(parent: int) -> None:
    """Ends this process within a second of rank 0's end, wherever the main thread waits."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _try_send(link: Link, kind: bytes, payload: bytes = b"") -> None:
    try:
        link.send(kind, payload)
    except OSError:
        return


def _last_words(link: Link) -> str:
    try:
        return _reason(link.receive(1.0))
    except OSError:
        return "it gave no reason"


def _reason(frame: tuple[bytes, bytes] | None) -> str:
    return frame[1].decode(errors="replace") if frame is not None and frame[0] == FAILED else "it gave no reason"
