"""A program in a pseudo-terminal with a screen: type keys, wait for text, read what a person would see.

The screen is pyte's, an emulator of a VT100 that knows nothing of us.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte

COLUMNS, LINES = 100, 60
POLL_S = 0.02
PATIENCE_S = 120.0


def _controlling() -> None:
    """In the child: its stdin becomes the terminal that sends it signals."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Window:
    """Use as a context manager; the program is killed where it has not ended by itself."""

    def __init__(self, argv: list[str], environment: dict[str, str], folder: Path):
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, cwd=folder, start_new_session=True,
            preexec_fn=_controlling, env={**os.environ, "TERM": "xterm", **environment},
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    @property
    def lines(self) -> list[str]:
        """The screen's lines down to the last that holds something, without trailing blanks."""
        # A wide character takes two cells; the second holds an empty text.
        shown = [line.rstrip() for line in self.screen.display]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    def _read(self) -> None:
        if not select.select([self._master], [], [], POLL_S)[0]:
            return
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the program has ended
            time.sleep(POLL_S)
            return
        self._stream.feed(data)
        # prompt_toolkit asks where the cursor is; a terminal answers.
        if b"\x1b[6n" in data:
            self.type(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")

    def wait_for(self, seen: Callable[[list[str]], bool], within_s: float = PATIENCE_S) -> None:
        """Until `seen(lines)`; fails with what the screen shows."""
        deadline = time.monotonic() + within_s
        while not seen(self.lines):
            self._read()
            assert time.monotonic() < deadline, "the screen shows:\n" + "\n".join(self.lines)

    def wait_prompt(self, prompt: str, number: int) -> None:
        """Until the `number`-th prompt stands on the last line."""
        self.wait_for(lambda lines: bool(lines) and _count(lines, prompt) >= number and lines[-1] == prompt.rstrip())

    def end(self, within_s: float = PATIENCE_S) -> int:
        """The exit code, once the program has ended."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            self._read()
            assert time.monotonic() < deadline, "it did not end; the screen shows:\n" + "\n".join(self.lines)
        self._read()
        return self.process.returncode


def _count(lines: list[str], prompt: str) -> int:
    return sum(line.startswith(prompt.rstrip()) for line in lines)
