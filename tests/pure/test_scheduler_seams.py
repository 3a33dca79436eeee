"""Proofs that the seam between scheduler and runner carries what later features need, against FakeRunner.

FakeRunner refuses what a real runner cannot do and draws tokens that depend on every cached position, so `dream`, which
knows only the token list, tells right from wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.support.workloads import POISON, VOCAB, CountingMatcher, Harness, Workload, allowed

from tokenmill.config import SchedulerConfig
from tokenmill.engine.contract import Capacity, KVGroup, RopeBase, StepPlan, StepResult
from tokenmill.engine.fake import FakePending, FakeRunner, dream
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.sequence import Sequence
from tokenmill.engine.tables import Hit
from tokenmill.errors import RequestError
from tokenmill.types import Finish, GrammarSpec, Request, Sampling, Stop, Want

FULL = KVGroup("full", 2, 4, 64, 64)
WINDOW = KVGroup("window", 2, 4, 64, 40, 6)
PLAIN = Capacity((FULL,), max_rows=4, max_step_tokens=32, max_model_tokens=80, vocab_size=VOCAB)
GREEDY = Sampling(temperature=0.0, seed=1)
OVERLAP = SchedulerConfig(overlap=True)


def request(name: str, prompt: int | list[int], new: int = 8, **more: object) -> Request:
    ids = tuple(prompt) if isinstance(prompt, list) else tuple((i * 7 + prompt) % (VOCAB - 1) for i in range(prompt))
    return Request(name, ids, stop=Stop(new), **{"sampling": GREEDY, **more})


def harness(capacity: Capacity, requests: list[tuple[int, Request]], config: SchedulerConfig = OVERLAP) -> Harness:
    return Harness(Workload(capacity, config, True, requests, {}), check_every=1)


def plans_of(made: Harness) -> list[StepPlan]:
    """Notes every plan that reaches the runner."""
    seen: list[StepPlan] = []
    run = made.runner.run

    def noting(plan: StepPlan) -> FakePending:
        seen.append(plan)
        return run(plan)

    made.runner.run = noting  # type: ignore[method-assign]
    return seen


# ---- masks


@dataclass
class NotedPending:
    runner: LateRunner
    step: int
    inner: FakePending

    def result(self) -> StepResult:
        self.runner.order.append(("commit", self.step))
        return self.inner.result()

    def sample(self, masks: dict[int, bytes]) -> None:
        self.runner.order.append(("sample", self.step))
        self.inner.sample(masks)


class LateRunner(FakeRunner):
    """Notes in which order steps are queued, sampled and committed."""

    def __init__(self, capacity: Capacity) -> None:
        super().__init__(capacity)
        self.order: list[tuple[str, int]] = []

    def run(self, plan: StepPlan) -> NotedPending:  # type: ignore[override]
        self.order.append(("queue", plan.step))
        return NotedPending(self, plan.step, super().run(plan))


class LateHarness(Harness):
    def __init__(self, work: Workload) -> None:
        super().__init__(work, 1)
        self.runner = self.core.runner = LateRunner(work.capacity)


def test_masks_arrive_late_and_hold_nobody_back() -> None:
    """A masked step is queued before the last is committed, its masks come after; all answers obey their grammar."""
    constrained = request("masked", 5, 10, grammar=GrammarSpec("choice", "x"))
    made = LateHarness(Workload(PLAIN, OVERLAP, True, [(0, constrained), (0, request("free", 6, 10))], {}))
    made.run()
    order = made.runner.order
    masked = [step for word, step in order if word == "sample"]
    assert len(masked) >= 10
    for step in masked[1:]:
        at = [order.index((word, number)) for word, number in
              (("queue", step), ("commit", step - 1), ("sample", step), ("commit", step))]
        assert at == sorted(at), "queued, then the step before committed, then masks, then committed"
    assert made.answers[1].tokens == dream(made.answers[1].request, PLAIN, 1)[0]


def test_mask_of_an_ended_sequence_is_harmless() -> None:
    """The row that is ahead when its request ends is masked too: its mask allows everything and its draw is dropped."""
    stop = Stop(30, 0, tuple(range(1, 30)))
    constrained = replace(request("m", 5, grammar=GrammarSpec("choice", "x")), stop=stop)
    made = harness(PLAIN, [(0, constrained), (0, request("free", 4, 12))])
    made.run()
    assert made.answers[0].finish is Finish.STOP and made.answers[1].finish is Finish.LENGTH


@pytest.mark.parametrize("overlap", [True, False])
def test_failing_grammars_end_their_own_request_only(overlap: bool) -> None:
    class Failing(CountingMatcher):
        def mask(self) -> bytes:
            if self.length == 3:
                raise ValueError("stack is empty")
            return allowed(self.length)

    made = harness(PLAIN, [(0, request("free", 4, 12))], SchedulerConfig(overlap=overlap))
    other = request("bad", 5, 10, grammar=GrammarSpec("choice", "x"))
    made.submit(9, other)
    made.scheduler.desk.live[9].matcher = Failing()
    made.check_answer = lambda answer: None  # type: ignore[method-assign]
    made.run()
    assert made.answers[9].finish is Finish.ERROR and "stack is empty" in str(made.answers[9].error)
    assert made.answers[0].tokens == dream(made.answers[0].request, PLAIN, 1)[0]


# ---- drafts


@pytest.mark.parametrize("overlap", [True, False])
def test_three_drafts_a_row(overlap: bool) -> None:
    """Rows of up to four tokens whose length only the device knows; each answer is that of one token at a time."""
    capacity = replace(PLAIN, max_drafts=3)
    requests = [(i // 2, request(f"r{i}", 3 + i, 20)) for i in range(6)]
    made = harness(capacity, requests, SchedulerConfig(overlap=overlap))
    plans = plans_of(made)
    made.run()
    decoded = [row.num_tokens for plan in plans for row in plan.rows if row.tokens is None]
    assert decoded.count(4) >= 20
    steady = [plan for plan in plans if not any(row.tokens is not None for row in plan.rows)]
    assert len(plans) < 6 * 20 / 2, "drafts save steps"
    assert steady, "steps of nothing but drafts under way"


def test_drafts_never_run_beyond_the_limit_or_the_blocks() -> None:
    """A context that ends in the middle of the drafts, and a cache that is too small: FakeRunner refuses both."""
    capacity = replace(PLAIN, groups=(replace(FULL, num_blocks=8),), max_drafts=3, max_model_tokens=17)
    made = harness(capacity, [(0, request(f"r{i}", 5 + i, 40)) for i in range(4)])
    made.run()
    assert all(len(a.tokens) + len(a.request.prompt_ids) == 17 for a in made.answers.values())
    assert made.totals["preemptions"] > 0


# ---- groups


def test_a_full_and_a_window_group() -> None:
    """The window's blocks are freed behind it; prefix hits need the prefix in both groups."""
    capacity = replace(PLAIN, groups=(FULL, WINDOW))
    shared = [i * 3 % 37 for i in range(24)]
    requests = [(i * 12, request(f"r{i}", [*shared, i], 20)) for i in range(3)]
    made = harness(capacity, requests)
    most = 0
    check = made.check_blocks

    def checking() -> None:
        nonlocal most
        check()
        group = made.scheduler.desk.tables.groups[1]
        most = max(most, int((group.have - group.first).max()))

    made.check_blocks = checking  # type: ignore[method-assign]
    made.run()
    assert made.totals["cached_tokens"] >= 2 * 20
    long_prompt_blocks = -(-32 // WINDOW.block_tokens)
    assert most <= long_prompt_blocks + 2, "a window row holds its window and the step under way, not its whole context"


def test_a_hit_is_the_longest_valid_in_all_groups() -> None:
    """The window's copies of a prefix are evicted: then the full group's hit alone is none."""
    capacity = replace(PLAIN, groups=(FULL, WINDOW))
    shared = [i * 3 % 37 for i in range(16)]
    made = harness(capacity, [(0, request("first", [*shared, 1], 4))])
    made.run()
    made.scheduler.desk.tables.groups[1].pool.clear_index()
    made.submit(5, request("second", [*shared, 2], 4))
    made.work = replace(made.work, requests=[])
    made.run()
    assert made.totals["cached_tokens"] == 0
    made.submit(6, request("third", [*shared, 3], 4))
    made.run()
    assert made.answers[6].extras["cached_tokens"] == 16, "the second put them there again"


# ---- history


def test_history_on_a_prefix_hit() -> None:
    """Penalties see the whole prompt although the hit never shows those tokens to the runner."""
    shared = list(range(16))
    penalised = replace(GREEDY, repetition_penalty=1.2)
    made = harness(PLAIN, [
        (0, request("first", [*shared, 1], 4)),
        (9, request("second", [*shared, 2, 3], 6, sampling=penalised)),
    ])
    plans = plans_of(made)
    made.run()
    assert made.answers[1].extras["cached_tokens"] == 16
    (told,) = [init for plan in plans for init in plan.new_slots if init.history is not None]
    assert told.history.tolist() == [*shared, 2, 3] and told.prompt_tokens == 18
    run = [row for plan in plans for row in plan.rows if row.tokens is not None and row.start == 16]
    assert [row.tokens.tolist() for row in run] == [[2, 3]], "only what is not cached runs"


def test_history_after_a_preemption() -> None:
    """What was drawn before comes back as history, and `prompt_tokens` tells it from the prompt."""
    capacity = replace(PLAIN, groups=(replace(FULL, num_blocks=7),))
    penalised = replace(GREEDY, repetition_penalty=1.2)
    made = harness(capacity, [(0, request("old", 6, 16)), (0, request("young", 7, 16, sampling=penalised))])
    plans = plans_of(made)
    made.run()
    assert made.totals["preemptions"] >= 1
    told = [init for plan in plans for init in plan.new_slots if init.history is not None]
    answer = made.answers[1]
    whole = [*answer.request.prompt_ids, *answer.tokens]
    assert len(told) >= 2 and len(told[-1].history) > 7
    for init in told:
        assert init.prompt_tokens == 7 and init.history.tolist() == whole[: len(init.history)]
        assert init.seed == told[0].seed


# ---- rope


def test_prompts_either_side_of_the_ntk_limit_share_nothing() -> None:
    """The base belongs to the block keys: the long prompt recomputes the shared prefix, twins of each kind hit."""
    rope = RopeBase("dynamic", 10000.0, 2.0, 16, 8)
    capacity = replace(PLAIN, rope=rope)
    shared = list(range(12))
    short, long = [*shared, 1, 2], [*shared, *range(20, 28)]
    made = harness(capacity, [
        (0, request("short", short, 3)), (10, request("long", long, 3)),
        (20, request("short twin", [*short, 9], 3)), (30, request("long twin", long, 3)),
    ])
    plans = plans_of(made)
    made.run()
    cached = [made.answers[i].extras["cached_tokens"] for i in range(4)]
    assert cached == [0, 0, 12, 16], "twins of one length class hit; the classes share nothing"
    bases = {init.rope_base for plan in plans for init in plan.new_slots}
    assert bases == {10000.0, rope.for_prompt(20)} and rope.for_prompt(20) > 10000.0


def test_the_base_is_kept_when_the_answer_crosses_the_limit_and_is_preempted() -> None:
    capacity = replace(PLAIN, groups=(replace(FULL, num_blocks=7),), rope=RopeBase("dynamic", 1e4, 2.0, 9, 8))
    made = harness(capacity, [(0, request("old", 6, 16)), (0, request("young", 7, 16))])
    plans = plans_of(made)
    made.run()
    assert made.totals["preemptions"] >= 1
    assert {init.rope_base for plan in plans for init in plan.new_slots} == {1e4}


# ---- wants


def test_prompt_logprobs_come_whole_over_chunks_and_preemption() -> None:
    """The same numbers whatever the chunks; logits and hidden states of each position once."""
    wants = Want.TOKEN | Want.LOGPROBS | Want.PROMPT_LOGPROBS | Want.HIDDEN
    asked = request("r", 21, 5, want=wants, top_logprobs=2)
    found = []
    for tokens in (32, 5):
        made = harness(replace(PLAIN, max_step_tokens=tokens), [(0, asked)])
        parts: list[dict[str, object]] = []
        commit = made.scheduler.commit

        def noting(
            result: StepResult, commit: Callable[..., object] = commit, parts: list[dict[str, object]] = parts
        ) -> object:
            out = commit(result)
            parts.extend(out.extras.values())
            return out

        made.scheduler.commit = noting  # type: ignore[method-assign]
        made.run()
        joined = {n: np.concatenate([p[n] for p in parts if n in p]) for n in ("prompt_logprobs", "hidden", "logprobs")}
        found.append(joined)
    assert found[0]["prompt_logprobs"].shape == (20,)
    assert found[0]["hidden"].shape == (21 + 4, 4)
    assert found[0]["logprobs"].shape == (5,)
    for name, whole in found[0].items():
        assert np.array_equal(whole, found[1][name]), name


def test_steady_decoding_travels_as_one_array() -> None:
    """Once all prompts are through, a plan holds slots and nothing else."""
    made = harness(PLAIN, [(0, request(f"r{i}", 4, 40)) for i in range(4)])
    plans = plans_of(made)
    made.run()
    steady = [p for p in plans if len(p.decode_slots) == 4 and not p.rows and not p.new_slots]
    assert len(steady) >= 35
    assert all(p.decode_slots.dtype == np.int32 and not len(p.masked) for p in steady)


# ---- the line


def scheduler(capacity: Capacity, config: SchedulerConfig = OVERLAP) -> Scheduler:
    return Scheduler(capacity, config, prefix_caching=True, draw_seed=lambda: 3, clock=lambda: 0.0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (request("a", []), "at least 1"),
        (request("a", 200), "context is 80 tokens"),
        (request("a", [VOCAB]), r"\[0, 40\)"),
        (request("a", 3, -1), "at least 0"),
        (replace(request("a", 3), stop=Stop(5, 0, tuple(range(300)))), "limit is 256"),
    ],
)
def test_refusals_name_the_numbers(asked: Request, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        scheduler(PLAIN).submit(asked, 1)
    assert caught.value.status == 400


def test_a_prompt_that_the_cache_can_never_hold_is_refused_with_three_numbers() -> None:
    small = replace(PLAIN, groups=(replace(FULL, num_blocks=5),))
    with pytest.raises(RequestError, match=r"25 tokens.*holds 20 tokens.*is 80 tokens"):
        scheduler(small).submit(request("a", 25), 1)


def test_a_full_queue_says_429_and_ids_are_unique() -> None:
    one = scheduler(PLAIN, SchedulerConfig(max_queue=2))
    for number in range(6):
        one.submit(request(f"r{number}", 3), number)
    with pytest.raises(RequestError, match="queue holds 2") as caught:
        one.submit(request("r6", 3), 6)
    assert caught.value.status == 429
    one.abort(3)
    with pytest.raises(RequestError, match="ids must differ"):
        one.submit(request("r1", 3), 7)
    one.submit(request("r3", 3), 8)


def test_lower_priority_numbers_run_first() -> None:
    made = harness(replace(PLAIN, max_rows=1), [(0, request(f"r{i}", 3, 4, priority=-i)) for i in range(3)])
    ended: list[int] = []
    hear = made.core.publish
    made.core.publish = lambda out: (hear(out), ended.extend(out.handles[out.finishes >= 0].tolist()))[0]
    made.run()
    assert ended == [2, 1, 0]


def test_a_long_prompt_does_not_hold_up_running_rows() -> None:
    """Chunks fill what running rows leave of the step; the rows advance in every step."""
    capacity = replace(PLAIN, max_step_tokens=8, groups=(replace(FULL, num_blocks=64),))
    made = harness(capacity, [(0, request("runs", 3, 30)), (4, request("long", 60, 2))])
    plans = plans_of(made)
    made.run()
    mixed = [p for p in plans if len(p.decode_slots) and p.rows]
    assert len(mixed) >= 8 and all(sum(r.num_tokens for r in p.rows) <= 7 for p in mixed)


# ---- what is shared, and who gives way


def test_prefix_hits_stay_within_those_who_share_a_salt() -> None:
    prompt = list(range(14))
    names = ("", "mine", "mine", "", "yours")
    made = harness(PLAIN, [(i * 9, request(f"r{i}", prompt, 3, cache_salt=salt)) for i, salt in enumerate(names)])
    made.run()
    assert [made.answers[i].extras["cached_tokens"] for i in range(5)] == [0, 0, 12, 12, 0]


@pytest.mark.parametrize("prompt", [5, 7])
@pytest.mark.parametrize("overlap", [True, False])
def test_the_next_turn_of_a_chat_hits_what_has_run(overlap: bool, prompt: int) -> None:
    """An answer's last token is drawn but never run: the block that it fills is not there for the next turn."""
    first = request("turn 1", prompt, 8 - prompt)
    answer, _ = dream(first, PLAIN, 1)
    turn = [*first.prompt_ids, *answer, 7]
    made = harness(PLAIN, [(0, first), (9, request("turn 2", turn, 3))], SchedulerConfig(overlap=overlap))
    made.run()
    assert len(turn) == 9 and made.answers[1].extras["cached_tokens"] == 4


def test_blocks_of_a_prompt_that_failed_are_never_indexed() -> None:
    """Its logits were not finite: nobody may build on its cache."""
    made = harness(PLAIN, [(0, request("bad", [*range(12), POISON, 3], 3))])
    made.run()
    assert made.answers[0].finish is Finish.ERROR
    assert made.scheduler.desk.tables.groups[0].pool.num_indexed == 0


def test_hit_blocks_that_nobody_holds_are_not_free_twice() -> None:
    """4 cached blocks and 1 free one: a prompt that hits the 4 has room for 1 more, not for 5."""
    one = scheduler(replace(PLAIN, groups=(replace(FULL, num_blocks=5),)))
    tables = one.desk.tables
    pool = tables.groups[0].pool
    blocks = pool.allocate(4)
    for number, block in enumerate(blocks.tolist()):
        pool.publish(block, bytes([number]))
    pool.release(blocks)
    hit = Hit(16, [(0, blocks.tolist())])
    assert pool.num_free == 5
    assert tables.fits(hit, 20, [0]) and not tables.fits(hit, 21, [0]) and not tables.fits(hit, 20, [1])


def victims_of(made: Harness) -> list[tuple[str, set[str]]]:
    """Who was preempted, and who sat there at that moment."""
    found: list[tuple[str, set[str]]] = []
    preempt = made.scheduler.desk.preempt

    def noting(seq: Sequence) -> None:
        found.append((seq.request.id, {s.request.id for s in made.scheduler.desk.state.sequences if s is not None}))
        preempt(seq)

    made.scheduler.desk.preempt = noting  # type: ignore[method-assign]
    return found


def test_the_youngest_gives_way() -> None:
    capacity = replace(PLAIN, groups=(replace(FULL, num_blocks=9),))
    made = harness(capacity, [(0, request(f"r{i}", 5, 18)) for i in range(3)])
    victims = victims_of(made)
    made.run()
    assert victims and all(victim == max(seated) for victim, seated in victims)


def test_rows_of_this_plan_do_not_give_way() -> None:
    """A favoured prompt runs in chunks beside a row that decodes; when blocks end, the row is in the plan already."""
    capacity = replace(PLAIN, groups=(replace(FULL, num_blocks=10),), max_step_tokens=6)
    for new in range(8, 30):
        made = harness(capacity, [(0, request("runs", 3, new)), (4, request("favoured", 26, 3, priority=-1))])
        made.run()
