"""Random workloads for the scheduler, and the harness that runs them against FakeRunner with every property checked.

No torch. A workload is a pure function of its number: a small capacity (so that blocks run out), requests that share
prefixes, arrivals, aborts, timeouts, grammars, drafts, windows, overlap on or off.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from math import prod
from random import Random

import numpy as np

from tokenmill.config import SchedulerConfig
from tokenmill.engine.contract import Capacity, KVGroup, RopeBase, StepCost, StepOutputs
from tokenmill.engine.core import Core
from tokenmill.engine.fake import FakeRunner, dream
from tokenmill.engine.scheduler import Scheduler
from tokenmill.errors import RequestError
from tokenmill.types import Finish, GrammarSpec, MediaRef, Request, Sampling, Stop

FINISHES = list(Finish)
VOCAB = 40
POISON = VOCAB - 1


def allowed(answer_length: int) -> bytes:
    """The test grammar: which tokens may come depends on how many there are. The poisoned token never may."""
    bits = [(t + answer_length) % 3 != 0 and t != POISON for t in range(VOCAB)]
    return np.packbits(bits, bitorder="little").tobytes()


class CountingMatcher:
    """Refuses a token its mask forbids, so that a late, stale or missing mask ends the request with an error."""

    def __init__(self) -> None:
        self.length = 0

    def mask(self) -> bytes:
        return allowed(self.length)

    def accept(self, token: int) -> bool:
        fine = bool(self.mask()[token >> 3] >> (token & 7) & 1)
        self.length += 1
        return fine

    def rollback(self, count: int) -> None:
        self.length -= count


@dataclass(frozen=True)
class Workload:
    capacity: Capacity
    config: SchedulerConfig
    prefix_caching: bool
    requests: list[tuple[int, Request]]
    aborts: dict[int, list[int]]


@dataclass
class Answer:
    request: Request
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    extras: dict[str, object] = field(default_factory=dict)
    error: object = None


def make_capacity(rng: Random, tight: bool) -> Capacity:
    size = rng.choice([1, 2, 3, 4])
    drafts = rng.choice([0, 0, 0, 0, 1, 3])
    tokens = rng.randint(12, 16) if tight else rng.randint(12, 60)
    groups = [KVGroup("full", 2, size, 64, -(-tokens // size), None)]
    if rng.random() < 0.3:
        window = rng.choice([2, 3, 5, 8])
        other = rng.choice([size, size, 2])
        least = -(-(window + 2 * (drafts + 1)) // other) + 1
        groups.append(KVGroup("window", 2, other, 64, rng.randint(least, least + 10), window))
    if len(groups) == 2 and rng.random() < 0.3:
        groups.reverse()
    rows = rng.randint(3 if tight else 1, 6)
    return Capacity(
        tuple(groups),
        max_rows=rows,
        max_step_tokens=rng.randint(rows, 16),
        max_model_tokens=rng.randint(14, 40),
        vocab_size=VOCAB,
        max_drafts=drafts,
        cost=StepCost(100.0, 1.0, 10.0, 500.0),
        rope=RopeBase("dynamic", 10000.0, 2.0, 9, 8) if rng.random() < 0.3 else None,
        salt="kv16",
    )


def make_request(rng: Random, number: int, prefix: list[int], room: int, tight: bool) -> Request:
    length = rng.randint(1, 5 if tight else 12)
    prompt = (prefix[: rng.choice([0, length, length])] + [rng.randrange(VOCAB - 1) for _ in range(length)])[:length]
    if rng.random() < 0.03:
        prompt[-1] = POISON
    penalised = rng.random() < 0.2
    sampling = Sampling(
        temperature=rng.choice([0.0, 1.0]),
        repetition_penalty=1.1 if penalised else 1.0,
        seed=rng.randrange(1 << 30),
    )
    stops = tuple(rng.sample(range(VOCAB - 1), rng.choice([0, 0, 2, 5])))
    return Request(
        id=f"r{number}",
        prompt_ids=tuple(prompt[: max(1, room - 1)]),
        sampling=sampling,
        stop=Stop(rng.randint(4, 9) if tight else rng.randint(1, 6), rng.choice([0, 0, 2]), stops),
        grammar=GrammarSpec("choice", "test") if rng.random() < 0.15 else None,
        cache_salt=rng.choice(["", "", "", "other"]),
        priority=rng.choice([0, 0, 0, 1, -1]),
        timeout_s=rng.choice([None] * 12 + [4.0]),
    )


def with_pictures(rng: Random, capacity: Capacity) -> Capacity:
    """Half of the runners keep vectors of pictures, some of them of one small picture only."""
    if rng.random() < 0.5:
        return capacity
    tile = rng.choice([1, 2, 3])
    grids = rng.random() < 0.4
    # Grids have up to six vectors: the largest one alone, or a little more.
    pages = -(-6 // tile) + rng.choice([0, 0, 1]) if grids else rng.choice([1, 2, 3, 8])
    return replace(capacity, tile_tokens=tile, vector_bytes=4, encoder_cache_bytes=4 * tile * pages, grids=grids)


def add_pictures(rng: Random, request: Request, capacity: Capacity) -> Request:
    """Pictures over the prompt's tokens: few different ones, so that prompts share them, and one in a wrong place."""
    media: list[MediaRef] = []
    end = rng.choice([0, 0, 1, 3])
    while rng.random() < 0.6:
        number = rng.randrange(5)
        grid = (1 + number % 3, 1 + number // 2) if capacity.grids else ()
        size = prod(grid) if grid else capacity.tile_tokens * (1 + number % 3)
        if end + size > len(request.prompt_ids) and rng.random() < 0.9:
            break
        media.append(MediaRef(f"im{number}", end, size, f"/file/{number}", grid))
        end += size + rng.choice([0, 0, 1, 2])
    return replace(request, media=tuple(media))


def make_workload(seed: int) -> Workload:
    rng = Random(seed)
    # Too little room for all at once: sequences are preempted, some of them again and again.
    tight = rng.random() < 0.25
    capacity = make_capacity(rng, tight)
    prefix = [rng.randrange(VOCAB - 1) for _ in range(12)]
    room = capacity.max_model_tokens
    count = rng.randint(3, 5) if tight else rng.randint(1, 6)
    pictures = Random(seed + (1 << 40))
    capacity = with_pictures(pictures, capacity)
    arrivals = sorted(rng.randint(0, 1 if tight else 4) for _ in range(count))
    requests = [(arrival, make_request(rng, i, prefix, room, tight)) for i, arrival in enumerate(arrivals)]
    if capacity.tile_tokens:
        requests = [(arrival, add_pictures(pictures, request, capacity)) for arrival, request in requests]
    aborts: dict[int, list[int]] = {}
    for handle in range(count):
        if rng.random() < 0.12:
            aborts.setdefault(rng.randint(0, 9), []).append(handle)
    config = SchedulerConfig(
        max_step_tokens=rng.choice([None, rng.randint(capacity.max_rows, 16)]),
        itl_target_ms=rng.choice([None, None, None, 0.2]),
        overlap=rng.random() < 0.6,
    )
    return Workload(capacity, config, rng.random() < 0.8, requests, aborts)


class Harness:
    """Runs a workload turn by turn; `check_every` turns all block counts are checked."""

    def __init__(self, work: Workload, check_every: int = 4) -> None:
        self.work = work
        self.check_every = check_every
        self.time = 0.0
        self.runner = FakeRunner(work.capacity, poison=POISON)
        self.scheduler = Scheduler(
            work.capacity,
            work.config,
            prefix_caching=work.prefix_caching,
            draw_seed=lambda: 7,
            clock=lambda: self.time,
        )
        self.core = Core(self.runner, self.scheduler, self.hear, overlap=work.config.overlap)
        self.answers: dict[int, Answer] = {}
        self.totals: Counter[str] = Counter()

    def hear(self, outputs: StepOutputs) -> None:
        at = 0
        assert len(set(outputs.handles.tolist())) == len(outputs.handles), "a request twice in one message"
        for handle, count, finish in zip(
            outputs.handles.tolist(), outputs.counts.tolist(), outputs.finishes.tolist(), strict=True
        ):
            answer = self.answers[handle]
            assert answer.finish is None, "tokens after the end"
            answer.tokens += outputs.tokens[at : at + count].tolist()
            at += count
            extras = outputs.extras.get(handle, {})
            answer.extras.update(extras)
            answer.error = extras.get("error", answer.error)
            if finish >= 0:
                answer.finish = FINISHES[finish]
        assert at == len(outputs.tokens)

    def submit(self, handle: int, request: Request) -> None:
        try:
            seq = self.scheduler.submit(request, handle)
        except RequestError:
            self.totals["refused"] += 1
            return
        self.answers[handle] = Answer(request)
        if seq.waits_for_grammar:
            self.scheduler.grammar_ready(handle, CountingMatcher())

    def run(self, most_turns: int = 600) -> None:
        waiting = list(enumerate(self.work.requests))
        turn = 0
        while waiting or not self.scheduler.idle or self.core._ahead is not None:
            assert turn < most_turns, "requests that never end"
            while waiting and waiting[0][1][0] <= turn:
                handle, (_, request) = waiting.pop(0)
                self.submit(handle, request)
            for handle in self.work.aborts.get(turn, ()):
                self.scheduler.abort(handle)
            self.core.turn()
            if turn % self.check_every == 0:
                self.check_blocks()
            turn += 1
            self.time += 1.0
        self.totals["turns"] += turn
        self.check_end()

    def check_blocks(self) -> None:
        """Every block is held as often as it is counted; held, cached and free ones are all there are."""
        state = self.scheduler.desk.state
        for group in self.scheduler.desk.tables.groups:
            held: Counter[int] = Counter()
            for slot in range(state.rows):
                entries = group.table[slot, group.first[slot] : group.have[slot]].tolist()
                assert len(set(entries)) == len(entries), "a block twice in one table"
                assert not entries or state.sequences[slot] is not None, "blocks of nobody"
                held.update(entries)
            pool = group.pool
            assert {b: int(n) for b, n in enumerate(pool.refs) if n} == dict(held), "counts are wrong"
            loose = pool._free[: pool._top].tolist() + list(pool._cached)
            assert len(loose) == len(set(loose)) == pool.num_free and not set(loose) & set(held)
            assert pool.num_free + len(held) == pool.num_blocks, "blocks are lost"
            if group.window is not None:
                assert max((group.have - group.first).max(), 0) <= pool.num_blocks

    def check_end(self) -> None:
        """Nothing is left, and every answer is what its request alone gives."""
        desk = self.scheduler.desk
        self.check_blocks()
        assert not desk.live and not desk.ids and not desk.waiting and not desk.prefilling and not desk.ended
        assert not self.runner.seats, "slots were not released"
        assert all(g.pool.num_free == g.pool.num_blocks for g in desk.tables.groups), "blocks are leaked"
        assert desk.state.num_seated == 0 and not self.scheduler.flights
        self.check_pictures()
        for answer in self.answers.values():
            self.check_answer(answer)
        self.totals["preemptions"] += desk.totals.preemptions
        self.totals["cached_tokens"] += desk.totals.cached_tokens
        self.totals["output_tokens"] += desk.totals.output_tokens

    def check_pictures(self) -> None:
        """Scheduler and runner agree on what is kept, up to drops that no plan has told yet."""
        cache = self.scheduler.desk.images
        assert set(self.runner.images) - set(cache._dropped) == set(cache._tiles) and not cache._encode
        assert cache.num_free + sum(cache._tiles.values()) == self.work.capacity.image_tiles
        shown = {im.digest for answer in self.answers.values() for im in answer.request.media}
        self.totals["encoded"] += self.runner.encoded
        self.totals["encoded_again"] += max(0, self.runner.encoded - len(shown))

    def check_answer(self, answer: Answer) -> None:
        request, capacity = answer.request, self.work.capacity
        mask = (lambda so_far: allowed(len(so_far))) if request.grammar is not None else None
        limit = self.scheduler.desk.tables.most_tokens
        limit = capacity.max_model_tokens if limit is None else min(limit, capacity.max_model_tokens)
        tokens, finish = dream(
            request, capacity, request.sampling.seed or 0, limit=limit, mask=mask, poison=POISON
        )
        assert answer.finish is not None, f"{request.id} never ended"
        self.totals[answer.finish.value] += 1
        if answer.finish in (Finish.ABORT, Finish.TIMEOUT):
            assert answer.tokens == tokens[: len(answer.tokens)], "wrong tokens before the end"
            return
        assert answer.tokens == tokens, f"{request.id}: {answer.tokens} is not {tokens}: {answer.error}"
        assert answer.finish == finish


def run_many(seeds: range, check_every: int = 4) -> Counter[str]:
    """Runs a range of workloads; totals over all. An AssertionError names the workload's number."""
    totals: Counter[str] = Counter()
    for seed in seeds:
        harness = Harness(make_workload(seed), check_every)
        try:
            harness.run()
        except Exception as error:
            raise AssertionError(f"workload {seed}: {type(error).__name__}: {error}") from error
        totals.update(harness.totals)
        totals["workloads"] += 1
    return totals


if __name__ == "__main__":
    print(json.dumps(run_many(range(int(sys.argv[1]), int(sys.argv[2])))))
