"""A bar with the time left, on stderr: drawn in a terminal, a line every few seconds elsewhere (logs, pipes)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_EVERY_S = 10.0


class Show(Protocol):
    def __call__(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` are done; `note` is shown behind the bar."""
        ...


@contextmanager
def progress(what: str, unit: str) -> Iterator[Show]:
    """Shows work of countable steps. An interruption leaves the terminal as it was."""
    if not sys.stderr.isatty():
        yield _plain(what, unit)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)


def _plain(what: str, unit: str) -> Show:
    begun = told = time.monotonic()

    def show(done: int, total: int, note: str = "") -> None:
        nonlocal told
        now = time.monotonic()
        if done < total and now - told < PLAIN_EVERY_S:
            return
        told = now
        left = (now - begun) / max(done, 1) * (total - done)
        print(f"{what}: {done}/{total} {unit}, {left:.0f} s left{f', {note}' if note else ''}", file=sys.stderr)

    return show
