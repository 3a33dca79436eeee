"""Two gloo processes equal one: greedy, seeded sampling, chunks, batches, masks; a rank that dies is told at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.support.drive import Driver, chunk, init, ints

from tokenmill.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, ParallelConfig, SchedulerConfig
from tokenmill.errors import ConfigError, EngineDeadError
from tokenmill.models.tiny import make_tiny
from tokenmill.runner.runner import make_runner
from tokenmill.types import Sampling, Want

PROMPTS = [[5, 17, 3, 44, 90, 2, 61, 8, 8, 33, 71], [400, 3], [12, 250, 7, 7, 7, 99, 31, 500, 40, 41, 42, 43, 44]]
DRAW = Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.2)


def config(folder, tp: int, kv: str = "auto") -> EngineConfig:
    return EngineConfig(
        ModelConfig(str(folder)), CacheConfig(kv, num_blocks=128), SchedulerConfig(max_rows=8, max_step_tokens=64),
        ParallelConfig(tp), KernelConfig("cpu", threads=1),
    )


def answers(runner) -> tuple[list[object], list[float]]:
    """What a runner says to the same plans: alone in chunks, drawn with a seed, and three rows in one batch."""
    driver = Driver(runner)
    said: list[object] = [driver.generate(0, PROMPTS[0], 16, 3)]
    said.append(driver.generate(1, PROMPTS[2], 16, sampling=DRAW, seed=7))
    result = driver.run(
        rows=[chunk(slot, prompt, want=Want.TOKEN | Want.LOGPROBS) for slot, prompt in enumerate(PROMPTS)],
        inits=[init(slot, prompt, top_logprobs=2) for slot, prompt in enumerate(PROMPTS)],
        new_blocks=np.concatenate([driver.take(slot, 40) for slot in range(3)]),
    )
    said.append(result.tokens.tolist())
    logprobs = [float(result.extras[(slot, slot + 100)].logprobs[0]) for slot in range(3)]
    pending = runner.run(driver.plan(decode=[0, 1, 2], masked=ints([1])))
    allowed = np.zeros(512, np.uint8)
    allowed[[20, 40]] = 1
    pending.sample({1: np.packbits(allowed, bitorder="little").tobytes()})
    said.append(pending.result().tokens.tolist())
    ahead = [runner.run(driver.plan(decode=[0, 1, 2])) for _ in range(8)]
    said.append([pending.result().tokens.tolist() for pending in ahead])
    return said, logprobs


@pytest.mark.parametrize(("family", "kv"), [("llama", "auto"), ("internlm2", "int8")])
def test_two_ranks_equal_one(tmp_path, family, kv):
    folder = make_tiny(family, tmp_path)
    one, two = make_runner(config(folder, 1, kv)), make_runner(config(folder, 2, kv))
    try:
        assert two.capacity().vocab_size == one.capacity().vocab_size
        assert two.capacity().groups[0].bytes_per_block * 2 == one.capacity().groups[0].bytes_per_block
        (said, logprobs), (alone, alone_logprobs) = answers(two), answers(one)
        assert said == alone
        assert logprobs == pytest.approx(alone_logprobs, abs=1e-4)
    finally:
        one.close()
        two.close()


def test_ranks_sleep_and_wake_together(tmp_path):
    runner = make_runner(config(make_tiny("llama", tmp_path), 2))
    try:
        before = Driver(runner).generate(0, PROMPTS[0], 8)
        for level in (1, 2):
            assert runner.control("sleep", level=level) == ("weights", "kv_cache")
            assert runner.control("wake", tags=("weights",)) == ("kv_cache",)
            assert runner.control("wake", tags=()) == ()
            assert Driver(runner).generate(0, PROMPTS[0], 8) == before
    finally:
        runner.close()


def test_a_dead_rank_is_told_within_seconds(tmp_path):
    runner = make_runner(config(make_tiny("llama", tmp_path), 2))
    driver = Driver(runner)
    driver.run(rows=[chunk(0, PROMPTS[0])], inits=[init(0, PROMPTS[0])], new_blocks=driver.take(0, 60))
    os.kill(runner._ranks.pids()[0], signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(EngineDeadError, match="rank 1|lost its peers"):
        for _ in range(40):
            driver.run(decode=[0])
    # Ranks that wait for one another give up after a minute.
    assert time.monotonic() - started < 20
    while runner._ranks.failure is None:
        assert time.monotonic() - started < 20
        time.sleep(0.01)
    with pytest.raises(EngineDeadError, match="rank 1 of 2 ended with code -9"):
        driver.run(decode=[0])
    runner.close()


def test_ranks_end_when_the_runner_closes(tmp_path):
    runner = make_runner(config(make_tiny("llama", tmp_path), 2))
    (pid,) = runner._ranks.pids()
    runner.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_ranks_end_with_rank_0(tmp_path):
    """Rank 0 is killed: what it had started is gone within seconds."""
    code = (
        f"import os, signal; from tests.dist.test_two_ranks import *; r = make_runner(config({str(tmp_path)!r}, 2)); "
        "print(r._ranks.pids()[0], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    make_tiny("llama", tmp_path)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    pid, ends = int(done.stdout), time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < ends
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_shares_that_cannot_be_cut_are_refused(tmp_path):
    folder = make_tiny("llama", tmp_path)
    with pytest.raises(ConfigError, match="use --tp with one of 1, 2, 4"):
        make_runner(config(folder, 3))
