"""Factories that an engine under test is started from, by name: `start_engine("tests.support.engines:small", ...)`.

They run in the engine's own process too, so they import neither torch nor pytest. What a test wants of the runner goes
through `config.model.path`, since that is all a factory is given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tests.support.workloads import VOCAB, CountingMatcher
from tokenmill.config import EngineConfig
from tokenmill.engine.contract import Capacity, KVGroup, Runner
from tokenmill.engine.fake import FakeRunner
from tokenmill.errors import CapacityError, ConfigError
from tokenmill.types import GrammarSpec

SMALL = Capacity((KVGroup("full", 2, 4, 64, 400),), 16, 64, 200, VOCAB)


class Describing(FakeRunner):
    def control(self, op: str, **arguments: object) -> object:
        return {"weights_bytes": 5, "pid": os.getpid()} if op == "describe" else super().control(op, **arguments)


def small(config: EngineConfig) -> Runner:
    """A FakeRunner without delays."""
    return Describing(SMALL)


def slow(config: EngineConfig) -> Runner:
    """20 ms a step."""
    return Describing(SMALL, latency_s=0.02)


def failing(config: EngineConfig) -> Runner:
    """Its fifth step raises."""
    return FakeRunner(SMALL, fail_at=5)


def refusing(config: EngineConfig) -> Runner:
    if config.model.path == "capacity":
        raise CapacityError("needs 5 GiB, has 4 GiB: --cache-max-entry-count 0.5 fits")
    raise ConfigError(f"model path is {config.model.path!r}; it must be a folder")


def broken(config: EngineConfig) -> Runner:
    raise ValueError("not for users")


def dying(config: EngineConfig) -> Runner:
    os._exit(7)


def sleepy(config: EngineConfig) -> Runner:
    time.sleep(60)
    return FakeRunner(SMALL)


def compilers(config: EngineConfig) -> Callable[[GrammarSpec], CountingMatcher]:
    """Grammars: "bad" cannot be compiled; the compilation of a path lasts until there is a file."""

    def compile_one(spec: GrammarSpec) -> CountingMatcher:
        if spec.text == "bad":
            raise ValueError("no such rule")
        if spec.text.startswith("/"):
            deadline = time.monotonic() + 60
            while not os.path.exists(spec.text) and time.monotonic() < deadline:
                time.sleep(0.01)
        return CountingMatcher()

    return compile_one
