"""Costs measured at start: against a runner whose times follow the formula, and on a real one."""

from __future__ import annotations

import time

import pytest
from tests.support.tiny_runner import tiny_capacity, tiny_runner

from tokenmill.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, SchedulerConfig
from tokenmill.engine.contract import StepCost, StepPlan
from tokenmill.models.tiny import make_tiny
from tokenmill.runner import cost
from tokenmill.runner.runner import make_runner

TRUE = StepCost(500.0, 100.0, 20.0, 40.0)


class FormulaRunner:
    """A real runner beneath a clock that moves by the formula."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.runner, _ = tiny_runner(capacity=tiny_capacity())
        self.now_us = 0.0
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now_us / 1e6)

    def capacity(self):
        return self.runner.capacity()

    def run(self, plan: StepPlan):
        self.now_us += TRUE.step_us
        for row in plan.rows:
            self.now_us += TRUE.row_us + row.num_tokens * TRUE.token_us
            self.now_us += row.num_tokens * row.start / 1000 * TRUE.token_kcontext_us
        return self.runner.run(plan)


def test_the_formula_is_found_again(monkeypatch):
    runner = FormulaRunner(monkeypatch)
    found = cost.measure_cost(runner)
    runner.runner.close()
    for name in ("step_us", "row_us", "token_us", "token_kcontext_us"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name))


def test_a_runner_measures_only_for_a_target_and_leaves_nothing_behind(tmp_path):
    folder = str(make_tiny("llama", tmp_path))
    make = lambda target: make_runner(
        EngineConfig(
            ModelConfig(folder), CacheConfig(num_blocks=40), SchedulerConfig(8, 64, itl_target_ms=target),
            kernels=KernelConfig("cpu", threads=1),
        )
    )
    # Time of this process, as others have the machine too.
    started = time.process_time()
    plain, timed = make(None), make(50.0)
    assert time.process_time() - started < 10
    assert plain.capacity().cost == StepCost()
    assert timed.capacity().cost.step_us > 0
    assert (timed._host.length == -1).all()
    plain.close()
    timed.close()
