"""Steps before the first request: every way is gone, and nothing of it is left."""

from __future__ import annotations

import pytest
import torch
from tests.support.drive import Driver
from tests.support.tiny_runner import tiny_capacity, tiny_runner

from tokenmill.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from tokenmill.errors import CapacityError
from tokenmill.models.tiny import make_tiny
from tokenmill.runner import rehearse
from tokenmill.runner.runner import make_runner

PROMPT = [5, 17, 3, 44, 90, 2, 61, 8]


def test_what_is_said_afterwards_is_what_was_said_without():
    plain, rehearsed = (tiny_runner()[0] for _ in range(2))
    rehearse.rehearse(rehearsed)
    said = [Driver(runner).generate(3, PROMPT, 20, 3, seed=4) for runner in (plain, rehearsed)]
    assert said[0] == said[1]
    for runner in (plain, rehearsed):
        runner.close()


@pytest.mark.parametrize(("rows", "blocks", "tokens"), [(8, 128, 64), (1, 1, 64), (2, 1, 1), (8, 2, 3), (2, 64, 300)])
def test_any_capacity_is_gone_through(monkeypatch, rows, blocks, tokens):
    runner, _ = tiny_runner(capacity=tiny_capacity(rows, blocks, tokens))
    plans = []
    run = runner.run
    monkeypatch.setattr(runner, "run", lambda plan: (plans.append(plan), run(plan))[1])
    rehearse.rehearse(runner)
    taken = max(sum(row.num_tokens for row in plan.rows) for plan in plans)
    assert taken == max(min(tokens, blocks * 4 - 1, 255), 1)
    assert any(len(plan.masked) and plan.rows for plan in plans) == (min(rows, blocks) > 1 and tokens > 2)
    runner.close()


def test_every_kind_of_cache_group(tmp_path):
    config = EngineConfig(ModelConfig(str(make_tiny("gemma2", tmp_path))), CacheConfig(num_blocks=40),
                          SchedulerConfig(8, 64))
    runner = make_runner(config)
    assert len(runner.capacity().groups) > 1
    rehearse.rehearse(runner)
    runner.close()


def test_too_little_memory_is_told_with_the_flag(monkeypatch):
    runner, _ = tiny_runner()

    def refuse(plan):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "run", refuse)
    with pytest.raises(CapacityError, match="64 tokens.*--cache-max-entry-count or --max-prefill-token-num"):
        rehearse.rehearse(runner)
    runner.close()
