"""What `tokenmill bench host` measures is a steady step, and a step makes no object per row."""

from __future__ import annotations

import numpy as np
from tests.support.timing import best

from tokenmill.bench.host import BLOCK_TOKENS, NullRunner, make_scheduler, measure


def test_measured_steps_are_steady() -> None:
    """Every row decodes in every step, and blocks are taken and indexed all along."""
    rows = 8
    scheduler, runner = make_scheduler(rows, 200), NullRunner(rows)
    plans = []
    for _ in range(2 * BLOCK_TOKENS):
        plan = scheduler.plan()
        plans.append(plan)
        scheduler.commit(runner.run(plan))
    steady = plans[-BLOCK_TOKENS:]
    assert all(np.array_equal(np.sort(plan.decode_slots), np.arange(rows)) and not plan.rows for plan in steady)
    assert sum(len(plan.new_blocks) for plan in steady) == rows
    assert scheduler.desk.tables.groups[0].pool.num_indexed >= rows * (512 // BLOCK_TOKENS + 1)


def test_256_rows_cost_a_few_times_what_one_does() -> None:
    """An object per row would make it a hundred times."""

    def times() -> float:
        one, many = measure(1, 60), measure(256, 60)
        assert one.both_p50_us > 0 and "256 rows" in str(many)
        return many.both_p50_us / one.both_p50_us

    assert best(times, 12) < 12
