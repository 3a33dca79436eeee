"""Where steps are carried out on a CPU, and with how many threads."""

from __future__ import annotations

import threading

import pytest
import torch

from tokenmill.runner.lanes import AskedLane, ThreadLane, make_lane
from tokenmill.runner.place import threads_for
from tokenmill.runner.plan import THREAD_PARAMS, cpu_threads


@pytest.fixture
def lane():
    lane = AskedLane(None)
    yield lane
    lane.close()


def test_calls_run_in_order_when_a_result_is_asked_for_and_not_before(lane):
    ran = []
    calls = [lane.submit(lambda n=n: ran.append((n, threading.get_ident(), torch.is_inference_mode_enabled())) or n)
             for n in range(4)]
    assert ran == []
    assert calls[2].result() == 2
    here = threading.get_ident()
    assert ran == [(n, here, True) for n in range(3)]
    assert [call.result() for call in calls] == [0, 1, 2, 3] and len(ran) == 4


def test_a_call_may_ask_for_what_was_queued_before_it(lane):
    first = lane.submit(lambda: 20)
    assert lane.submit(lambda: first.result() + 1).result() == 21


def test_what_a_call_raises_is_its_own_result_and_no_other_ones(lane):
    bad, good = lane.submit(lambda: [][1]), lane.submit(lambda: 5)
    assert good.result() == 5
    for _ in range(2):
        with pytest.raises(IndexError):
            bad.result()


def test_what_nobody_asked_for_is_dropped_at_the_end(lane):
    ran = []
    lane.submit(ran.append, 1)
    lane.close()
    assert ran == [] and lane.submit(lambda: 3).result() == 3


def test_ranks_of_a_group_have_a_thread_that_waits_for_nobodys_question():
    alone, shared = make_lane(torch.device("cpu"), 1), make_lane(torch.device("cpu"), 1, ranks=2)
    assert type(alone) is AskedLane and type(shared) is ThreadLane
    begun = threading.Event()
    shared.submit(begun.set)
    assert begun.wait(30)
    shared.close()


def test_threads_follow_the_models_size_the_cores_and_the_users_word(monkeypatch):
    assert [cpu_threads(8, n * THREAD_PARAMS) for n in (0, 1, 3, 8, 400)] == [1, 1, 3, 8, 8]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_for(0) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_for(0) == threads_for(10**12) == 5
