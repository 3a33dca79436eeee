"""Asking a worker process over its pipes with a deadline, and ending it: for work that may hang or grow without bound.

A reply is four bytes of length, big-endian, and that many bytes of a JSON object; what a question looks like is the
worker's own. The process was started with `bufsize=0` and both pipes.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from typing import Any

# A reply is read in pieces of at most this size.
PIECE_BYTES = 1 << 20


def ask(process: subprocess.Popen[bytes], question: bytes, limit_s: float) -> dict[str, Any]:
    """The reply. Raises TimeoutError where it is late, another OSError where the process is gone; then `end` it."""
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + limit_s
    _write(process.stdin.fileno(), question, deadline)
    size = _read(process.stdout.fileno(), 4, deadline)
    return dict(json.loads(_read(process.stdout.fileno(), int.from_bytes(size, "big"), deadline)))


def end(process: subprocess.Popen[bytes] | None) -> None:
    """Kills the process and closes its pipes; None is ended already."""
    if process is None:
        return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _write(fd: int, data: bytes, deadline: float) -> None:
    view = memoryview(data)
    while view:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([], [fd], [], left)[1]:
            raise TimeoutError
        # No more than a pipe takes at once after select says so, lest the write block past the deadline.
        view = view[os.write(fd, view[: select.PIPE_BUF]) :]


def _read(fd: int, size: int, deadline: float) -> bytes:
    got = bytearray()
    while len(got) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise TimeoutError
        piece = os.read(fd, min(size - len(got), PIECE_BYTES))
        if not piece:
            raise BrokenPipeError
        got += piece
    return bytes(got)
