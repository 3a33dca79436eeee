"""LMDeploy's TurboMind, below its text pipeline: `async_stream_infer` on token ids, at most `max_rows` at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from tokenmill.bench.peers.contract import Settings
from tokenmill.bench.timeline import Timeline
from tokenmill.bench.workload import Item, Workload
from tokenmill.errors import ConfigError

KV = {"auto": 0, "int4": 4, "int8": 8}


class Peer:
    streams = True

    def load(self) -> str:
        import lmdeploy
        from lmdeploy import messages, turbomind

        self.messages: Any = messages
        self.turbomind: Any = turbomind
        return str(lmdeploy.__version__)

    def start(self, settings: Settings) -> dict[str, float]:
        if settings.kv not in KV:
            raise ConfigError(
                f"lmdeploy has no KV cache like {settings.kv!r}; it has {', '.join(KV)}: --quant-policy auto"
            )
        config = self.messages.TurbomindEngineConfig(
            dtype=settings.dtype, session_len=settings.max_model_tokens, max_batch_size=settings.max_rows,
            cache_max_entry_count=settings.memory_frac, quant_policy=KV[settings.kv], tp=settings.tp,
        )  # fmt: skip
        self.engine = self.turbomind.TurboMind.from_pretrained(settings.model, engine_config=config)
        self.rows, self.number = settings.max_rows, 0
        self.loop = asyncio.new_event_loop()
        return {}

    def run(self, workload: Workload) -> list[Timeline]:
        # Sent together: the wait for a place counts, as in the engine that queues by itself.
        lines = [Timeline(len(item.prompt_ids)) for item in workload.items]
        self.loop.run_until_complete(self._all(workload, lines))
        return lines

    async def _all(self, workload: Workload, lines: list[Timeline]) -> None:
        waiting = iter(zip(workload.items, lines, strict=True))
        places = min(self.rows, len(lines))
        await asyncio.gather(*(self._place(waiting, workload) for _ in range(places)))

    async def _place(self, waiting: Iterator[tuple[Item, Timeline]], workload: Workload) -> None:
        for item, line in waiting:
            self.number += 1
            await self._one(self.number, item, workload, line)

    async def _one(self, number: int, item: Item, workload: Workload, line: Timeline) -> None:
        drawn = workload.temperature > 0
        config = self.messages.GenerationConfig(
            max_new_tokens=item.new_tokens, ignore_eos=True, do_sample=drawn, top_p=workload.top_p,
            temperature=workload.temperature if drawn else 1.0, top_k=0 if drawn else 1,
        )  # fmt: skip
        outputs = self.engine.create_instance().async_stream_infer(
            number, input_ids=list(item.prompt_ids), gen_config=config, stream_output=True
        )
        try:
            async for output in outputs:
                line.got(len(output.token_ids))
        finally:
            await outputs.aclose()
        line.end()

    def close(self) -> None:
        self.loop.close()
