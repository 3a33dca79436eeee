"""From names to a running loop: the runner's factory, the grammar compiler, scheduler and core.

A factory is "module:function": `function(config) -> Runner`; a grammar factory gives `function(config) -> Compiler` and
is only looked up when the first constrained request comes, off the loop's thread.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable
from threading import Lock
from typing import Any

from tokenmill.config import EngineConfig
from tokenmill.engine.contract import Runner
from tokenmill.engine.core import Compiler, Core, Publish
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.sequence import Matcher
from tokenmill.errors import ConfigError
from tokenmill.types import GrammarSpec

SEED_BITS = 63


def look_up(name: str) -> Callable[..., Any]:
    """The function that "module:function" names. Raises ConfigError where the text is not such a name."""
    module, colon, function = name.partition(":")
    if not (module and colon and function.isidentifier()):
        raise ConfigError(f"{name!r} names no function; write it as package.module:function")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


class LazyCompiler:
    """Makes the compiler with the first grammar; several threads may ask at once."""

    def __init__(self, name: str, config: EngineConfig) -> None:
        self._name = name
        self._config = config
        self._lock = Lock()
        self._compile: Compiler | None = None

    def __call__(self, grammar: GrammarSpec) -> Matcher:
        with self._lock:
            if self._compile is None:
                self._compile = look_up(self._name)(self._config)
        return self._compile(grammar)


def make_core(
    runner: Runner, config: EngineConfig, publish: Publish, compiler: Compiler | None, *, frozen: bool = False
) -> Core:
    """A loop over `runner`, not yet running."""
    scheduler = Scheduler(
        runner.capacity(),
        config.scheduler,
        prefix_caching=config.cache.prefix_caching,
        draw_seed=lambda: secrets.randbits(SEED_BITS),
    )
    return Core(runner, scheduler, publish, overlap=config.scheduler.overlap, compiler=compiler, frozen=frozen)


def compiler_of(grammars: str, config: EngineConfig) -> Compiler | None:
    return LazyCompiler(grammars, config) if grammars else None


def describe(runner: Runner) -> dict[str, Any]:
    """What the runner says of itself (`control("describe")`): plain values; none where it knows no such word."""
    try:
        about = runner.control("describe")
    except ValueError:
        return {}
    return dict(about)
