"""An engine that sleeps and wakes: on a whole model, through runner, engine, its own process, pipeline and HTTP.

What must come out is what the same engine says when it has just been started.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.support.drive import Driver
from tests.support.http_server import LOOPBACK, client_of

from tokenmill import GenerationConfig, TurbomindEngineConfig, pipeline
from tokenmill.api.build import open_text_engine
from tokenmill.api.contract import TextEngine
from tokenmill.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, SchedulerConfig
from tokenmill.engine.client import EngineClient, start_engine
from tokenmill.errors import ConfigError, FormatError, RequestError
from tokenmill.models.tiny import make_tiny
from tokenmill.runner import sleep
from tokenmill.runner.memory import resident_bytes
from tokenmill.runner.runner import make_runner
from tokenmill.serve.http import background
from tokenmill.types import Finish, Request, Sampling, Stop

PROMPT = tuple(range(3, 40))
BLOCKS = 64


def config(folder: Path) -> EngineConfig:
    return EngineConfig(
        ModelConfig(str(folder)), CacheConfig(num_blocks=BLOCKS, block_tokens=16),
        SchedulerConfig(max_rows=4, max_step_tokens=64), kernels=KernelConfig("cpu", threads=1),
    )  # fmt: skip


def asked(name: str, new: int = 8) -> Request:
    return Request(name, PROMPT, Sampling(temperature=0.0), Stop(new))


async def start(folder: Path, own: bool = False) -> EngineClient:
    return await start_engine("tokenmill.runner.runner:make_runner", config(folder), own_process=own)


async def said(engine: EngineClient, name: str) -> tuple[int, ...]:
    return (await engine.score(asked(name))).token_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_tiny("llama", tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize(("level", "own"), [(1, False), (2, False), (2, True)])
async def test_answers_after_waking_are_those_before(folder: Path, level: int, own: bool) -> None:
    """Prefixes are not found again, as what the cache held is lost; the next time they are."""
    engine = await start(folder, own)
    try:
        before = await said(engine, "first")
        assert (await engine.score(asked("hit"))).usage.cached_tokens == 32
        await engine.sleep(level)
        assert (await engine.stats()).asleep == ("weights", "kv_cache")
        with pytest.raises(RequestError, match="sleeps") as caught:
            await said(engine, "asleep")
        assert caught.value.status == 503
        await engine.wakeup(("weights",))
        assert (await engine.stats()).asleep == ("kv_cache",)
        with pytest.raises(RequestError, match="sleeps"):
            await said(engine, "half asleep")
        await engine.wakeup(("weights", "kv_cache"))
        again = await engine.score(asked("again"))
        assert (again.token_ids, again.usage.cached_tokens) == (before, 0)
        assert (await engine.score(asked("hit again"))).usage.cached_tokens == 32
        stats = await engine.stats()
        assert stats.asleep == () and stats.blocks_free == stats.blocks_total == BLOCKS
    finally:
        await engine.close()


async def test_what_runs_is_aborted_first(folder: Path) -> None:
    engine = await start(folder)
    try:
        running = [asyncio.ensure_future(engine.score(asked(f"long {i}", 4000))) for i in range(6)]
        while not (await engine.stats()).output_tokens:
            await asyncio.sleep(0.01)
        await engine.sleep()
        # On a machine that stands still, some may have come to their end before.
        finishes = {(await one).finish for one in running}
        assert Finish.ABORT in finishes <= {Finish.ABORT, Finish.LENGTH}
        await engine.sleep(2)
        await engine.wakeup()
        await engine.wakeup()
        assert len(await said(engine, "after")) == 8
    finally:
        await engine.close()


async def test_wishes_that_are_none_are_refused(folder: Path) -> None:
    engine = await start(folder)
    try:
        with pytest.raises(RequestError, match="level is 3"):
            await engine.sleep(3)
        with pytest.raises(RequestError, match="tags are weights, kv_cache"):
            await engine.wakeup(("cache",))
        assert len(await said(engine, "awake")) == 8
    finally:
        await engine.close()


async def test_weights_that_cannot_be_read_sleep_on(tmp_path: Path) -> None:
    """The checkpoint is away when it is needed: the engine says so, and wakes once it is back."""
    made = Path(make_tiny("llama", tmp_path / "here"))
    engine = await start(made)
    try:
        before = await said(engine, "before")
        await engine.sleep(2)
        away = made.rename(tmp_path / "away")
        with pytest.raises(FormatError):
            await engine.wakeup()
        assert (await engine.stats()).asleep == ("weights", "kv_cache")
        away.rename(made)
        await engine.wakeup()
        assert await said(engine, "after") == before
    finally:
        await engine.close()


def test_a_pipeline_sleeps(folder: Path) -> None:
    greedy = GenerationConfig(max_new_tokens=6, ignore_eos=True, top_k=1)
    with pipeline(str(folder), TurbomindEngineConfig(session_len=256, max_batch_size=2)) as pipe:
        before = pipe("hello", gen_config=greedy).token_ids
        pipe.sleep(2)
        refused = pipe("hello", gen_config=greedy)
        assert refused.finish_reason == "error" and "sleeps" in (refused.error_message or "")
        pipe.wakeup(["weights", "kv_cache"])
        assert pipe("hello", gen_config=greedy).token_ids == before
    with pytest.raises(ConfigError, match="closed"):
        pipe.sleep()


def test_a_whole_server_sleeps(folder: Path, tmp_path: Path) -> None:
    """What the model says afterwards is what it said before; the text side answers meanwhile."""

    async def factory() -> TextEngine:
        return await open_text_engine(config(folder), name="tiny")

    path = str(tmp_path / "admin.sock")
    asked = {"model": "tiny", "prompt": "hello", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    with (
        background(factory, replace(LOOPBACK, admin_socket=path)) as server,
        client_of(server, 60) as client,
        httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://admin", timeout=60) as admin,
    ):
        before = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
        assert admin.post("/sleep?level=2").status_code == 200
        assert client.post("/v1/completions", json=asked).status_code == 503
        assert client.post("/v1/encode", json={"input": "hello"}).status_code == 200
        assert admin.post("/wakeup?tags=none").status_code == 400
        assert admin.post("/wakeup").status_code == 200
        assert client.post("/v1/completions", json=asked).json()["choices"][0]["text"] == before


def test_weights_that_leave_come_back_as_they_were(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 1 as on a GPU, from this device's memory to a copy in it."""
    monkeypatch.setattr(sleep, "leaves", lambda storage: storage.resizable() and storage.nbytes() > 0)
    runner = make_runner(config(folder))
    try:
        before = Driver(runner).generate(0, list(PROMPT), 12)
        held = resident_bytes(runner._steps.model)
        runner.control("sleep", level=1)
        assert resident_bytes(runner._steps.model) < held
        assert runner.control("wake", tags=("weights",)) == ("kv_cache",)
        assert resident_bytes(runner._steps.model) == held
        assert runner.control("wake", tags=("kv_cache",)) == ()
        assert Driver(runner).generate(0, list(PROMPT), 12) == before
        runner.control("sleep", level=1)
        runner.control("sleep", level=2)
        runner.control("wake", tags=())
        assert Driver(runner).generate(0, list(PROMPT), 12) == before
    finally:
        runner.close()


def test_pages_and_weights_are_really_gone(folder: Path) -> None:
    runner = make_runner(config(folder))
    try:
        pages = weakref.ref(runner._steps.caches[0].planes["k"])
        table = weakref.ref(runner._steps.model.embedding.table_VD)
        assert runner.control("sleep", level=1) == ("weights", "kv_cache")
        assert pages() is None and table() is not None
        assert runner.control("sleep", level=2) == ("weights", "kv_cache")
        assert table() is None
        assert runner.control("wake", tags=("kv_cache",)) == ("weights",)
        assert runner.control("wake", tags=()) == ()
        assert runner._steps.caches[0].planes["k"].isfinite().all()
    finally:
        runner.close()
