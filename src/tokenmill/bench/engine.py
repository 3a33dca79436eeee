"""Runs a workload through an `Engine`, token ids in and out: no HTTP, no tokenizer. All requests are sent at once."""

from __future__ import annotations

import asyncio
import itertools

from tokenmill.bench.timeline import Summary, Timeline, summarize
from tokenmill.bench.workload import Item, Workload, warm_items
from tokenmill.engine.contract import Engine
from tokenmill.errors import TokenmillError
from tokenmill.types import Finish, Request, Sampling, Stop


async def run_item(engine: Engine, request: Request) -> Timeline:
    """One request to its end. Its error, if any, is in the timeline: the others go on."""
    line = Timeline(len(request.prompt_ids))
    try:
        async for output in engine.generate(request):
            line.got(len(output.token_ids))
            if output.finish in (Finish.ERROR, Finish.ABORT, Finish.TIMEOUT):
                line.end(output.error or output.finish.value)
                return line
    except TokenmillError as error:
        line.end(str(error))
        return line
    line.end()
    return line


def request_of(item: Item, workload: Workload, request_id: str) -> Request:
    sampling = Sampling(temperature=workload.temperature, top_p=workload.top_p)
    return Request(request_id, item.prompt_ids, sampling, Stop(max_new_tokens=item.new_tokens))


async def run_lines(
    engine: Engine, workload: Workload, run: int = 0, concurrency: int | None = None
) -> list[Timeline]:
    """All requests of `workload`, at most `concurrency` at a time (None: the engine queues them all)."""
    gate = asyncio.Semaphore(concurrency or len(workload.items))
    numbers = itertools.count()

    async def one(item: Item) -> Timeline:
        async with gate:
            return await run_item(engine, request_of(item, workload, f"{workload.name}-{run}-{next(numbers)}"))

    return list(await asyncio.gather(*(one(item) for item in workload.items)))


async def run_workload(engine: Engine, workload: Workload, run: int = 0, concurrency: int | None = None) -> Summary:
    """`run_lines`, summarized."""
    return summarize(workload.name, await run_lines(engine, workload, run, concurrency))


async def warm_up(engine: Engine, vocab_size: int) -> None:
    """A few short requests, so that the first workload pays for no first use."""
    await run_workload(engine, Workload("warm-up", warm_items(vocab_size)), run=-1)
