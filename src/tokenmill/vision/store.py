"""Files with the pixels of pictures that requests use, in memory where the system has a folder for that.

The engine, and every rank, reads a picture's file when it encodes it. A file is kept while a request holds it and for
`LINGER_S` after, in which a plan made before the request's end may still read it; then room is made, oldest first.
The folder goes with this object; folders of processes that were killed are removed by the next one that starts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from tokenmill.errors import RequestError
from tokenmill.vision.pool import Cut

MOST_BYTES = 1 << 30
KEPT_BYTES = 256 << 20
LINGER_S = 10.0
PREFIX = "tokenmill-media-"
SHARED_MEMORY = Path("/dev/shm")


@dataclass(slots=True)
class Held:
    """`uses`: requests that hold it. `free_since`: when the last one let go. `keys`: sources that gave these pixels."""

    cut: Cut
    size: int
    keys: set[bytes]
    uses: int = 0
    free_since: float = 0.0


class MediaStore:
    """Safe to use from several threads. `most_bytes` bounds all files, `kept_bytes` those that nobody holds."""

    def __init__(self, most_bytes: int = MOST_BYTES, kept_bytes: int = KEPT_BYTES, linger_s: float = LINGER_S) -> None:
        self._most, self._kept, self._linger_s = most_bytes, kept_bytes, linger_s
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._by_key: dict[bytes, str] = {}
        self._number = 0
        self._folder: Path | None = None

    def new_path(self) -> Path:
        """Where a picture's pixels may be written before `adopt`."""
        with self._lock:
            if self._folder is None:
                self._folder = _make_folder()
            self._number += 1
            return self._folder / f"new-{self._number}"

    def find(self, key: bytes) -> Cut | None:
        """What this source gave before, held once more; None: it is not here."""
        with self._lock:
            digest = self._by_key.get(key)
            return None if digest is None else self._hold(self._held[digest])

    def adopt(self, key: bytes, cut: Cut) -> Cut:
        """Takes over a new file and holds it. Raises RequestError (429) where requests hold all there may be."""
        with self._lock:
            here = self._held.get(cut.digest)
            if here is not None:
                cut.path.unlink(missing_ok=True)
            else:
                here = self._take_in(cut)
            here.keys.add(key)
            self._by_key[key] = cut.digest
            return self._hold(here)

    def release(self, digests: tuple[str, ...]) -> None:
        with self._lock:
            for digest in digests:
                held = self._held.get(digest)
                if held is None:
                    continue
                held.uses -= 1
                held.free_since = time.monotonic()
            self._sweep()

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return sum(held.size for held in self._held.values())

    def close(self) -> None:
        with self._lock:
            self._held.clear()
            self._by_key.clear()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _hold(self, held: Held) -> Cut:
        held.uses += 1
        self._held.move_to_end(held.cut.digest)
        return held.cut

    def _take_in(self, cut: Cut) -> Held:
        size = cut.path.stat().st_size
        if sum(held.size for held in self._held.values() if held.uses) + size > self._most:
            cut.path.unlink(missing_ok=True)
            raise RequestError(
                f"the images of requests under way take all of {self._most >> 20} MiB: try again later", 429,
                code="queue_full",
            )  # fmt: skip
        path = cut.path.with_name(cut.digest)
        cut.path.rename(path)
        held = self._held[cut.digest] = Held(replace(cut, path=path), size, set())
        return held

    def _sweep(self) -> None:
        """Drops what nobody holds, oldest first, until the rest is small enough."""
        free = [held for held in self._held.values() if not held.uses]
        size, now = sum(held.size for held in free), time.monotonic()
        for held in free:
            if size <= self._kept or now - held.free_since < self._linger_s:
                return
            size -= held.size
            held.cut.path.unlink(missing_ok=True)
            del self._held[held.cut.digest]
            for key in held.keys:
                self._by_key.pop(key, None)


def _make_folder() -> Path:
    base = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    for old in base.glob(f"{PREFIX}*"):
        _remove_dead(old)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))


def _remove_dead(folder: Path) -> None:
    """A folder of ours whose process is gone."""
    pid = folder.name.removeprefix(PREFIX).partition("-")[0]
    try:
        if not pid.isdigit() or folder.stat().st_uid != os.getuid():
            return
        os.kill(int(pid), 0)
    except ProcessLookupError:
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
