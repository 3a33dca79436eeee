"""Decode buckets and their padding, without CUDA: a replay is played by the step itself on the bucket's static
tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.support.drive import Driver, chunk, init
from tests.support.tiny_runner import VOCAB, tiny_runner

from tokenmill.runner.graphs import GATHER_BYTES, DecodeGraphs, _Captured, buckets, choose


@dataclass
class PlayedGraph:
    """Stands for a captured graph: writes the step's outcome into the same tensors, for all rows of the bucket."""

    step: object
    context: int
    captured: _Captured | None = None
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        logits, totals = self.step(self.captured.slots_R, self.context)
        self.captured.logits_RV.copy_(logits)
        self.captured.totals_R.copy_(totals)


def played(steps, keys: list[tuple[int, int]]) -> DecodeGraphs:
    graphs = DecodeGraphs.__new__(DecodeGraphs)
    graphs._dummy, graphs.keys, graphs._captured = steps.tables.dummy, keys, {}
    for rows, context in keys:
        graph = PlayedGraph(steps.decode, context)
        slots, totals = torch.full((rows,), steps.tables.dummy), torch.zeros(rows, dtype=torch.int32)
        graph.captured = _Captured(graph, slots, torch.full((rows, VOCAB), torch.nan), totals)
        graphs._captured[rows, context] = graph.captured
    return graphs


def test_padded_buckets_draw_what_exact_steps_draw():
    """One to six rows in buckets of 4 and 8 rows and contexts of 16 and 256, growing past the first context."""
    said = []
    for padded in (True, False):
        runner, _ = tiny_runner()
        driver = Driver(runner)
        if padded:
            runner._steps.graphs = played(runner._steps, [(8, 256), (4, 256), (8, 16), (4, 16)])
        tokens = []
        for slot in range(6):
            prompt = list(range(3 + slot, 12 + 2 * slot))
            driver.run(rows=[chunk(slot, prompt)], inits=[init(slot, prompt)], new_blocks=driver.take(slot, 60))
            tokens += [driver.run(decode=list(range(slot + 1))).tokens.tolist() for _ in range(3)]
        if padded:
            replays = {key: one.graph.replays for key, one in runner._steps.graphs._captured.items()}
            assert sum(replays.values()) == 18
            assert replays[4, 16] > 0 and replays[8, 256] > 0
        said.append(tokens)
        runner.close()
    assert said[0] == said[1]


def test_padding_leaves_no_trace():
    runner, _ = tiny_runner()
    steps, driver = runner._steps, Driver(runner)
    driver.run(rows=[chunk(0, [1, 2, 3])], inits=[init(0, [1, 2, 3])], new_blocks=driver.take(0, 20))
    steps.graphs = played(steps, [(8, 256)])
    before = [plane.clone() for plane in steps.caches[0].planes.values()]
    driver.run(decode=[0])
    assert steps.tables.length.tolist() == [4] + [0] * 8
    after = steps.caches[0].planes.values()
    changed = [(a != b) & ~(a.isnan() & b.isnan()) for a, b in zip(before, after, strict=True)]
    # One place of the row's own block, and the spare block that writes to nowhere land on.
    assert all(int(c.flatten(2).any(-1).sum()) == 2 and bool(c[-1].any()) for c in changed)
    runner.close()


def test_a_step_takes_the_least_bucket_that_holds_it():
    keys = buckets((1, 2, 4, 8), 10_000, 4096)
    assert keys == sorted(keys, reverse=True)
    assert all(rows * context * 4096 <= GATHER_BYTES for rows, context in keys)
    for rows in range(1, 10):
        for context in (1, 1024, 1025, 5000, 10_000, 10_001):
            holding = [key for key in keys if key[0] >= rows and key[1] >= context]
            assert choose(keys, rows, context) == (min(holding) if holding else None)
    assert choose(keys, 9, 1) is None


def test_buckets_that_would_gather_too_much_run_eager():
    per_token = GATHER_BYTES // (4 * 2048)
    assert buckets((4, 8), 2048, per_token) == [(8, 1024), (4, 2048), (4, 1024)]
    assert len(buckets((4, 8), 2048, 0)) == 4


@pytest.mark.parametrize("longest", [1, 1024, 1500])
def test_the_longest_context_is_a_bucket(longest):
    assert max(context for _, context in buckets((1,), longest, 0)) == longest
    assert np.diff(sorted(c for _, c in buckets((1,), longest, 0))).min(initial=1) > 0
