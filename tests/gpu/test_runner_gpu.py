"""The runner on CUDA: what the CPU says, graphs that replay what eager says, no host synchronisation inside a step."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from tests.support.drive import Driver, chunk, init, ints

from tokenmill.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, ParallelConfig, SchedulerConfig
from tokenmill.errors import EngineDeadError
from tokenmill.models.tiny import make_tiny
from tokenmill.runner import noise
from tokenmill.runner.runner import make_runner
from tokenmill.types import Sampling, Want

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")

PROMPTS = [[5, 17, 3, 44, 90, 2, 61, 8, 8, 33, 71], [400, 3], [12, 250, 7, 7, 7, 99, 31, 500, 40, 41, 42, 43, 44]]
EVERYTHING = Sampling(0.9, 40, 0.9, 0.01, 1.2, 0.3, 0.3, ((5, 2.0),), (6,))


def config(folder, device: str = "cuda", kv: str = "auto", eager: bool = False, tp: int = 1) -> EngineConfig:
    return EngineConfig(
        ModelConfig(str(folder), "float32"), CacheConfig(kv, 16, num_blocks=256), SchedulerConfig(16, 64),
        ParallelConfig(tp), KernelConfig(device, eager),
    )


@pytest.fixture(autouse=True)
def exact_products():
    """fp32 products as fp32: with TF32 near-ties of random weights turn."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def answers(runner) -> list[object]:
    driver = Driver(runner)
    said: list[object] = [driver.generate(0, PROMPTS[0], 24, 3)]
    said.append(driver.generate(1, PROMPTS[2], 24, sampling=EVERYTHING))
    seat(driver)
    ahead = [runner.run(driver.plan(decode=[0, 1, 2])) for _ in range(16)]
    return [*said, [pending.result().tokens.tolist() for pending in ahead]]


def seat(driver: Driver, sampling: Sampling = Sampling(temperature=0.0), count: int = 3) -> None:
    prompts = [PROMPTS[slot % 3] for slot in range(count)]
    driver.run(
        rows=[chunk(slot, prompt) for slot, prompt in enumerate(prompts)],
        inits=[init(slot, prompt, sampling, seed=slot, top_logprobs=2) for slot, prompt in enumerate(prompts)],
        new_blocks=np.concatenate([driver.take(slot, 120) for slot in range(count)]),
    )


def said_by(made: EngineConfig) -> list[object]:
    runner = make_runner(made)
    try:
        return answers(runner)
    finally:
        runner.close()


@pytest.mark.parametrize("family", ["llama", "internlm2"])
@pytest.mark.parametrize("kv", ["auto", "int8", "int4", "fp8"])
def test_cuda_says_what_the_cpu_says(tmp_path, family, kv):
    folder = make_tiny(family, tmp_path)
    assert said_by(config(folder, kv=kv)) == said_by(config(folder, "cpu", kv=kv))


@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_graphs_replay_what_eager_says(tmp_path, kv):
    folder = make_tiny("llama", tmp_path)
    assert said_by(config(folder, kv=kv)) == said_by(config(folder, kv=kv, eager=True))


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("level", [1, 2])
def test_sleep_frees_memory_and_waking_changes_no_answer(tmp_path, level, eager):
    """Weights and pages leave the device, graphs are captured again, and what is said is what was said."""
    runner = make_runner(config(make_tiny("llama", tmp_path), eager=eager))
    try:
        told, before = runner.control("describe"), answers(runner)
        Driver(runner).run(released_slots=ints([0, 1, 2]))
        full = torch.cuda.memory_allocated()
        assert runner.control("sleep", level=level) == ("weights", "kv_cache")
        freed = full - torch.cuda.memory_allocated()
        assert freed >= told["weights_bytes"] + told["kv_bytes"]
        assert runner.control("wake", tags=("weights",)) == ("kv_cache",)
        assert runner.control("wake", tags=()) == ()
        assert answers(runner) == before
        assert (runner._steps.graphs is None) == eager
    finally:
        runner.close()


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_a_steady_step_is_one_replay(tmp_path, monkeypatch, rows):
    replays: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph))[1])
    runner = make_runner(config(make_tiny("llama", tmp_path)))
    # The start rehearses.
    replays.clear()
    driver = Driver(runner)
    # Sixty-four tokens a step: the prompts of sixteen rows need several.
    for first in range(0, rows, 3):
        slots = range(first, min(first + 3, rows))
        driver.run(
            rows=[chunk(slot, PROMPTS[slot % 3]) for slot in slots],
            inits=[init(slot, PROMPTS[slot % 3]) for slot in slots],
            new_blocks=np.concatenate([driver.take(slot, 60) for slot in slots]),
        )
    assert not replays
    for _ in range(5):
        driver.run(decode=list(range(rows)))
    assert len(replays) == 5
    runner.close()


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), EVERYTHING, Sampling(top_p=0.9)], ids=str)
def test_nothing_in_a_step_waits_for_the_device(tmp_path, sampling):
    """Seating, a chunk, a mixed step, log-probabilities, steady steps and masks, with synchronisation an error."""
    runner = make_runner(config(make_tiny("internlm2", tmp_path)))
    driver = Driver(runner)
    seat(driver, sampling)
    driver.run(decode=[0, 1, 2])
    more = {"inits": [init(3, PROMPTS[0], sampling)], "new_blocks": driver.take(3, 60)}
    plans = [
        driver.plan(rows=[chunk(3, PROMPTS[0], 0, Want.PROMPT_LOGPROBS, [*PROMPTS[0][1:], -1])], decode=[0, 1], **more),
        driver.plan(decode=[0, 1, 2], want_logprobs=ints([1])),
        driver.plan(decode=[0, 1, 2], block_copies=ints([[0, 1, 2]])),
        driver.plan(decode=[0, 1, 2]),
        driver.plan(decode=[0, 2], released_slots=ints([1])),
    ]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = [runner.run(plan) for plan in plans]
        masked = runner.run(driver.plan(decode=[0, 2], masked=ints([2])))
        masked.sample({2: np.packbits(np.ones(512, np.uint8), bitorder="little").tobytes()})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    drawn = [one.result().counts.tolist() for one in (*pending, masked)]
    assert drawn == [[1] * 2, [1] * 3, [1] * 3, [1] * 3, [1] * 2, [1] * 2]
    runner.close()


def test_noise_is_the_same_on_every_device():
    keys = noise.row_keys(torch.arange(64) * 7919, torch.arange(64))
    there = noise.row_keys(torch.arange(64, device="cuda") * 7919, torch.arange(64, device="cuda"))
    assert there.tolist() == keys.tolist()
    torch.testing.assert_close(noise.exponential(there, 5000).cpu(), noise.exponential(keys, 5000), rtol=1e-5, atol=0)


@two_gpus
@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_two_gpus_equal_one(tmp_path, family):
    folder = make_tiny(family, tmp_path)
    assert said_by(config(folder, tp=2)) == said_by(config(folder))


@two_gpus
def test_a_dead_gpu_rank_is_told_within_seconds(tmp_path):
    runner = make_runner(config(make_tiny("llama", tmp_path), tp=2))
    driver = Driver(runner)
    seat(driver)
    os.kill(runner._ranks.pids()[0], signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(EngineDeadError):
        for _ in range(90):
            driver.run(decode=[0, 1, 2])
    assert time.monotonic() - started < 10
    runner.close()
