"""What a client needs of an engine, wherever that runs: a way there (`Link`) and what comes back (`Listener`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tokenmill.config import EngineConfig
from tokenmill.engine.contract import Stats, StepOutputs
from tokenmill.engine.core import Compiler
from tokenmill.types import Request

CLOSED = "the engine was closed; start it again"
CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What an engine is started from. `factory` is "module:function"; so is `grammars`, or it is a compiler."""

    factory: str
    config: EngineConfig
    grammars: str | Compiler | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What an engine is told to do between two steps: `op` is sleep (level) or wake (tags)."""

    op: str
    level: int = 1
    tags: tuple[str, ...] = ()


class Listener(Protocol):
    """Called on the event loop, in the order in which the engine spoke. `hear_end` comes once, last."""

    def hear(self, outputs: StepOutputs) -> None: ...

    def hear_stats(self, number: int, stats: Stats) -> None: ...

    def hear_obeyed(self, number: int, error: Exception | None) -> None: ...

    def hear_end(self, reason: str) -> None: ...


class Link(Protocol):
    """None of the first four waits; an engine that is gone ignores them.

    `submit` may raise RequestError where the request holds what cannot travel.
    """

    def submit(self, handle: int, request: Request) -> None: ...

    def abort(self, handle: int) -> None: ...

    def ask_stats(self, number: int) -> None: ...

    def control(self, number: int, order: Order) -> None: ...

    async def close(self) -> None: ...
