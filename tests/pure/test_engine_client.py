"""The client over a real loop: in this process and in its own, with FakeRunner behind it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.engines import SMALL
from tests.support.timing import TRIES
from tests.support.workloads import allowed

from tokenmill.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from tokenmill.engine.client import EngineClient, start_engine
from tokenmill.engine.contract import Stats
from tokenmill.engine.fake import dream
from tokenmill.engine.process import ProcessLink
from tokenmill.errors import CapacityError, ConfigError, EngineDeadError, RequestError
from tokenmill.types import Finish, GrammarSpec, Request, Sampling, StepOutput, Stop, Want

HERE = "tests.support.engines"
GREEDY = Sampling(temperature=0.0, seed=1)
ROOT = Path(__file__).parents[2]
# Hundredths of a second for what must come.
PATIENCE = 6000


def request(name: str, prompt: int = 5, new: int = 8, **more: object) -> Request:
    ids = tuple((i * 7 + prompt) % 39 for i in range(prompt))
    return Request(name, ids, stop=Stop(new), **{"sampling": GREEDY, **more})


async def start(kind: str, own: bool, scheduler: SchedulerConfig | None = None) -> EngineClient:
    config = EngineConfig(scheduler=scheduler or SchedulerConfig())
    return await start_engine(f"{HERE}:{kind}", config, own_process=own, compile_grammar=f"{HERE}:compilers")


@pytest.fixture(params=[False, True], ids=["here", "own process"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[EngineClient]:
    """A fast engine; nothing may be left in it when its test is over."""
    made = await start("small", request.param)
    yield made
    if made._dead is None:
        stats = await settled(made)
        assert stats.running == stats.waiting == 0 and stats.blocks_free == stats.blocks_total
    await made.close()
    assert not made._streams and not made._ids


async def settled(made: EngineClient) -> Stats:
    """Once what was aborted has gone."""
    for _ in range(PATIENCE):
        stats = await made.stats()
        if stats.running == stats.waiting == 0:
            break
        await asyncio.sleep(0.01)
    return stats


async def everything(made: EngineClient, asked: Request) -> tuple[list[int], StepOutput]:
    tokens: list[int] = []
    last = StepOutput()
    async for last in made.generate(asked):
        tokens += last.token_ids
    return tokens, last


def link_of(made: EngineClient) -> ProcessLink:
    assert isinstance(made._link, ProcessLink)
    return made._link


async def test_200_streams_at_once(engine: EngineClient) -> None:
    """More than there are rows; each gets what its request alone gives, with its own usage."""
    asked = [request(f"r{i}", 3 + i % 20, 4 + i % 11) for i in range(200)]
    found = await asyncio.gather(*(everything(engine, one) for one in asked))
    for one, (tokens, last) in zip(asked, found, strict=True):
        assert (tokens, last.finish) == dream(one, SMALL, 1)
        assert last.usage.prompt_tokens == len(one.prompt_ids) and last.usage.completion_tokens == len(tokens)
    stats = await engine.stats()
    assert stats.alive and stats.requests == stats.finished == 200
    assert stats.output_tokens == sum(len(tokens) for tokens, _ in found)


async def test_a_stop_token_is_named(engine: EngineClient) -> None:
    free, _ = await everything(engine, request("free", 6, 10))
    stop = free[4]
    tokens, last = await everything(engine, replace(request("stopped", 6), stop=Stop(10, 0, (stop,))))
    assert tokens == free[: free.index(stop) + 1] and last.finish is Finish.STOP and last.stop_token_id == stop


async def test_score_returns_one_output(engine: EngineClient) -> None:
    """Arrays and log-probabilities of prompt and answer, whatever the number of steps."""
    wants = Want.TOKEN | Want.LOGPROBS | Want.PROMPT_LOGPROBS | Want.HIDDEN
    asked = request("scored", 70, 3, want=wants, top_logprobs=2)
    whole = await engine.score(asked)
    assert whole.token_ids == tuple(dream(asked, SMALL, 1)[0]) and whole.finish is Finish.LENGTH
    assert [one.token_id for one in whole.logprobs] == list(whole.token_ids)
    assert whole.prompt_logprobs is not None and len(whole.prompt_logprobs) == 70 and whole.prompt_logprobs[0] is None
    assert [one.token_id for one in whole.prompt_logprobs[1:] if one] == list(asked.prompt_ids[1:])
    assert all(len(one.top) == 2 and one.top[0][1] >= one.top[1][1] for one in whole.logprobs)
    hidden = whole.arrays["hidden"]
    assert hidden.shape == (72, 4) and np.frombuffer(hidden.data, hidden.dtype).reshape(hidden.shape).max() <= 0


async def test_a_prompt_only_request(engine: EngineClient) -> None:
    asked = request("pooled", 9, 0, want=Want.POOL | Want.PROMPT_LOGPROBS)
    whole = await engine.score(asked)
    assert whole.token_ids == () and whole.finish is Finish.LENGTH
    assert whole.arrays["pool"].shape == (1,) and len(whole.prompt_logprobs or ()) == 9


async def test_refusals_are_raised(engine: EngineClient) -> None:
    with pytest.raises(RequestError, match="context is 200 tokens") as caught:
        await everything(engine, request("long", 300))
    assert caught.value.status == 400 and caught.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match="64 bits|cannot be sent"):
        await everything(engine, request("seeded", sampling=Sampling(seed=1 << 70)))
    with pytest.raises(RequestError, match="top_k is 2147483648"):
        # A runner keeps it in 32 bits.
        await everything(engine, request("wide", sampling=Sampling(top_k=1 << 31)))
    stream = engine.generate(request("twin", 5, 50))
    await anext(stream)
    with pytest.raises(RequestError, match="ids must differ"):
        await everything(engine, request("twin"))
    await stream.aclose()
    assert (await everything(engine, request("twin")))[1].finish is Finish.LENGTH


async def test_grammars_are_compiled_off_the_loop(engine: EngineClient, tmp_path: Path) -> None:
    """A slow one holds nobody up, its answer obeys it; one that cannot be compiled ends its own request."""
    gate = tmp_path / "gate"
    slow = asyncio.create_task(everything(engine, request("slow", grammar=GrammarSpec("choice", str(gate)))))
    bad = asyncio.create_task(everything(engine, request("bad", grammar=GrammarSpec("choice", "bad"))))
    tokens, _ = await everything(engine, request("free"))
    assert tokens == dream(request("free"), SMALL, 1)[0] and not slow.done()
    gate.touch()
    _, last = await bad
    assert last.finish is Finish.ERROR and "no such rule" in (last.error or "")
    assert (await slow)[0] == dream(request("slow"), SMALL, 1, mask=lambda done: allowed(len(done)))[0]


async def test_the_runner_tells_of_itself(engine: EngineClient) -> None:
    own = isinstance(engine._link, ProcessLink)
    assert engine.about["weights_bytes"] == 5 and (engine.about["pid"] != os.getpid()) == own


@pytest.mark.parametrize("own", [False, True])
async def test_abort_close_timeout(own: bool) -> None:
    """An abort ends with ABORT, a closed iterator frees its seat, a deadline ends with TIMEOUT, close ends the rest."""
    made = await start("slow", own)
    aborted = asyncio.create_task(everything(made, request("aborted", new=150)))
    late = asyncio.create_task(everything(made, request("late", new=150, timeout_s=0.8)))
    left = made.generate(request("left", new=150))
    await anext(left)
    made.abort("aborted")
    made.abort("nobody")
    assert (await aborted)[1].finish is Finish.ABORT
    await left.aclose()
    tokens, last = await late
    assert last.finish is Finish.TIMEOUT and 0 < len(tokens) < 150
    assert tokens == dream(request("late", new=150), SMALL, 1)[0][: len(tokens)]
    stats = await settled(made)
    assert stats.running == 0 and stats.blocks_free == stats.blocks_total
    rest = asyncio.create_task(everything(made, request("rest", new=150)))
    await asyncio.sleep(0.1)
    await asyncio.gather(made.close(), made.close())
    assert (await rest)[1].finish is Finish.ABORT
    assert not (await made.stats()).alive
    with pytest.raises(EngineDeadError, match="closed"):
        await everything(made, request("more"))


@pytest.mark.parametrize("own", [False, True])
async def test_a_full_queue_says_429(own: bool) -> None:
    made = await start("slow", own, SchedulerConfig(max_rows=2, max_queue=3))
    tasks = [asyncio.create_task(everything(made, request(f"r{i}", new=20))) for i in range(9)]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [one for one in found if isinstance(one, RequestError)]
    assert len(refused) == 4 and all(one.status == 429 for one in refused)
    assert all(one[1].finish is Finish.LENGTH for one in found if isinstance(one, tuple))
    await made.close()


@pytest.mark.parametrize("own", [False, True])
async def test_a_failing_runner_ends_every_request(own: bool) -> None:
    made = await start("failing", own)
    found = await asyncio.gather(
        *(everything(made, request(f"r{i}", new=50)) for i in range(4)), return_exceptions=True
    )
    for one in found:
        # Those that had not come in yet when it failed hear of its end instead.
        assert isinstance(one, EngineDeadError) or one[1].finish is Finish.ERROR
        assert "the device failed in step 5" in (str(one) if isinstance(one, EngineDeadError) else one[1].error)
    for _ in range(PATIENCE):
        if not (await made.stats()).alive:
            break
        await asyncio.sleep(0.01)
    with pytest.raises(EngineDeadError, match="the device failed in step 5"):
        await everything(made, request("more"))
    await made.close()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("kind", "path", "error", "said"),
    [("refusing", "x", ConfigError, "model path is 'x'"), ("refusing", "capacity", CapacityError, "has 4 GiB")],
)
async def test_start_errors_keep_their_class(
    own: bool, kind: str, path: str, error: type[Exception], said: str
) -> None:
    config = EngineConfig(model=ModelConfig(path), cache=CacheConfig(memory_frac=0.5))
    with pytest.raises(error, match=said):
        await start_engine(f"{HERE}:{kind}", config, own_process=own)


async def test_other_start_errors_say_what_happened(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineDeadError, match="could not start: ValueError: not for users"):
        await start("broken", True)
    with pytest.raises(EngineDeadError, match=r"ended while it started \(exit status 7\)"):
        await start("dying", True)
    with pytest.raises(ConfigError, match="names no function"):
        await start_engine("nothing", EngineConfig(), own_process=False)
    with pytest.raises(ConfigError, match="cannot cross"):
        await start_engine(f"{HERE}:small", EngineConfig(), own_process=True, compile_grammar=lambda spec: None)
    assert "the engine could not start" in capfd.readouterr().err, "the log has the traceback"


async def test_a_start_can_be_given_up() -> None:
    """A cancelled start leaves no process behind."""
    before = children()
    starting = asyncio.create_task(start("sleepy", True))
    for _ in range(PATIENCE):
        if children() - before:
            break
        await asyncio.sleep(0.01)
    assert len(children() - before) == 1
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not children() - before


async def test_a_killed_child_is_noticed_within_a_second() -> None:
    """Of a machine that others use too: what is slower by chance is tried again."""
    for _ in range(TRIES):
        seconds = await seconds_until_noticed()
        if seconds < 1.0:
            break
    assert seconds < 1.0


async def seconds_until_noticed() -> float:
    made = await start("slow", True)
    assert (await made.stats()).alive
    tasks = [asyncio.create_task(everything(made, request(f"r{i}", new=150))) for i in range(20)]
    await asyncio.sleep(0.2)
    os.kill(link_of(made).process.pid, signal.SIGKILL)
    begun = time.monotonic()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    seconds = time.monotonic() - begun
    assert all(isinstance(one, EngineDeadError) and "killed by signal 9" in str(one) for one in found)
    assert not (await made.stats()).alive
    with pytest.raises(EngineDeadError, match="start it again"):
        await made.score(request("more"))
    await made.close()
    return seconds


async def test_the_child_ignores_what_the_terminal_sends() -> None:
    """Ctrl-C reaches both processes: it is the parent that decides."""
    made = await start("slow", True)
    answer = asyncio.create_task(everything(made, request("r", new=15)))
    await asyncio.sleep(0.1)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(link_of(made).process.pid, number)
    assert (await answer)[1].finish is Finish.LENGTH
    await made.close()
    assert link_of(made).process.returncode == 0


ORPHAN = """
import asyncio, sys
from tests.pure.test_engine_client import link_of, request, start

async def main():
    made = await start("slow", True)
    stream = made.generate(request("r", new=190))
    await anext(stream)
    print(link_of(made).process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_the_child_ends_with_its_parent() -> None:
    command = [sys.executable, "-c", ORPHAN]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment()) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 60
        while is_running(child):
            assert time.monotonic() < deadline, "the child outlives its parent"
            time.sleep(0.05)


def environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


def status(pid: int | str) -> tuple[str, int]:
    """State letter and parent of a process; "Z" for one that is gone."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "Z", 0
    return state, int(parent)


def is_running(pid: int) -> bool:
    """False for a zombie as well: nobody may be there to wait for it."""
    return status(pid)[0] != "Z"


def children() -> set[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return {pid for pid in pids if status(pid)[1] == os.getpid()}


async def test_a_slow_reader_gets_everything_joined() -> None:
    """Outputs that nobody fetched are one output; the loop never waits for a reader, nor a child for its parent."""
    made = await start("small", True)
    stream = made.generate(request("r", 5, 150))
    first = await anext(stream)
    for _ in range(PATIENCE):
        if (await made.stats()).finished:
            break
        await asyncio.sleep(0.01)
    # An answer that comes after all outputs.
    await made.stats()
    parts = [one async for one in stream]
    assert len(parts) <= 2
    joined = first.token_ids + tuple(token for one in parts for token in one.token_ids)
    assert list(joined) == dream(request("r", 5, 150), SMALL, 1)[0]
    await made.close()


async def test_a_child_does_not_wait_for_a_blocked_parent() -> None:
    """Megabytes of logits while the parent's event loop stands still: the child's steps go on, nothing is lost."""
    made = await start("small", True)
    asked = [request(f"r{i}", 100, 60, want=Want.TOKEN | Want.LOGITS | Want.HIDDEN) for i in range(30)]
    tasks = [asyncio.create_task(made.score(one)) for one in asked]
    await asyncio.sleep(0)
    time.sleep(1.0)
    found = await asyncio.gather(*tasks)
    for one, whole in zip(asked, found, strict=True):
        assert whole.arrays["logits"].shape == (159, 40) and list(whole.token_ids) == dream(one, SMALL, 1)[0]
    await made.close()
