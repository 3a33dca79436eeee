"""Our own engine in a child like any peer's, opened as a product opens it: what `bench startup` times."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tokenmill import __version__
from tokenmill.bench.peers.contract import Settings
from tokenmill.bench.timeline import Timeline
from tokenmill.bench.workload import Workload
from tokenmill.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, ParallelConfig, SchedulerConfig


class Peer:
    streams = True

    def load(self) -> str:
        from tokenmill.api import build
        from tokenmill.bench import engine

        self.build: Any = build
        self.bench: Any = engine
        return __version__

    def start(self, settings: Settings) -> dict[str, float]:
        self.loop, self.runs = asyncio.new_event_loop(), 0
        started = time.perf_counter()
        self.opened = self.loop.run_until_complete(self.build.open_text_engine(engine_config(settings)))
        took = time.perf_counter() - started
        inside = dict(getattr(self.opened.engine, "about", {}).get("phases_s", {}))
        return {**inside, "process, tokenizer, rest": took - sum(inside.values())}

    def run(self, workload: Workload) -> list[Timeline]:
        self.runs += 1
        work = self.bench.run_lines(self.opened.engine, workload, self.runs)
        lines: list[Timeline] = self.loop.run_until_complete(work)
        return lines

    def close(self) -> None:
        self.loop.run_until_complete(self.opened.close())
        self.loop.close()


def engine_config(settings: Settings) -> EngineConfig:
    return EngineConfig(
        ModelConfig(settings.model, dtype=settings.dtype, max_model_tokens=settings.max_model_tokens),
        CacheConfig(kv=settings.kv, memory_frac=settings.memory_frac, prefix_caching=False),
        SchedulerConfig(max_rows=settings.max_rows),
        ParallelConfig(tp=settings.tp),
        KernelConfig(device=settings.device),
    )
