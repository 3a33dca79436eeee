"""Processes that decode pictures: each started when first needed, killed when late, and started again.

`WorkerPool.prepare` may be called from several threads; as many pictures are decoded at once as there are workers, the
others wait for one.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill import env, pipes
from tokenmill.errors import RequestError
from tokenmill.vision.cutting import Cutting, Grid, describe
from tokenmill.vision.decode import refuse

WORKERS = 2
DECODE_LIMIT_S = 20.0
MEMORY_LIMIT_BYTES = 1536 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """A picture as its family's tower reads it: bytes in a file, `tiles` pieces along their first axis."""

    digest: str
    tiles: int
    path: Path
    grid: Grid = ()


class Worker:
    """One process; `ask` is called by one thread at a time."""

    def __init__(self, limit_s: float, memory_bytes: int) -> None:
        self._limit_s = limit_s
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, head: dict[str, Any], data: bytes) -> dict[str, Any]:
        process = self._ready()
        text = json.dumps({**head, "bytes": len(data)}).encode()
        try:
            return pipes.ask(process, len(text).to_bytes(4, "big") + text + data, self._limit_s)
        except TimeoutError:
            self.close()
            return {"error": f"the image could not be decoded within {self._limit_s:g} s: send a smaller one"}
        except OSError:
            self.close()
            return {"error": "the image ended its decoder: send another file"}

    def close(self) -> None:
        process, self._process = self._process, None
        pipes.end(process)

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-P", "-m", "tokenmill.vision.worker", str(self._memory_bytes)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env.without_blas_threads()
            )
        return self._process


class WorkerPool:
    """`limit_s` is a picture's time once it has a worker."""

    def __init__(
        self, workers: int = WORKERS, limit_s: float = DECODE_LIMIT_S, memory_bytes: int = MEMORY_LIMIT_BYTES
    ) -> None:
        self._all = [Worker(limit_s, memory_bytes) for _ in range(workers)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)

    def prepare(self, data: bytes, said: str, cutting: Cutting, path: Path) -> Cut:
        """Pixels in a new file at `path`. Raises RequestError (400) where the bytes are no picture we take."""
        head = {"said": said, "path": str(path), **describe(cutting)}
        worker = self._idle.get()
        try:
            reply = worker.ask(head, data)
        finally:
            self._idle.put(worker)
        if "error" in reply:
            path.unlink(missing_ok=True)
            if "status" in reply:
                raise RequestError(str(reply["error"]), int(reply["status"]), param="image_url")
            raise refuse(str(reply["error"]))
        return Cut(str(reply["digest"]), int(reply["tiles"]), path, tuple(reply["grid"]))

    def close(self) -> None:
        for worker in self._all:
            worker.close()
