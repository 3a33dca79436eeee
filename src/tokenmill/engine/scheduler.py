"""Who may hold memory, who runs now, what has ended: submit, plan, masks, commit. Owned by one thread.

Steps are planned and committed in the same order; one may be planned while the previous one runs (overlap), or not.
Nothing here knows time but `clock`, and nothing draws but the seed of a request that names none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from time import monotonic
from typing import Any

from tokenmill.config import SchedulerConfig
from tokenmill.engine.admission import Ticket, check, make_sequence
from tokenmill.engine.committer import Committer, empty_outputs, merge_ended
from tokenmill.engine.contract import Capacity, Stats, StepOutputs, StepPlan, StepResult
from tokenmill.engine.desk import Desk
from tokenmill.engine.planner import Flight, Limits, Planner
from tokenmill.engine.sequence import Matcher, Sequence
from tokenmill.engine.thinking import around
from tokenmill.errors import RequestError
from tokenmill.types import Finish, Request


class Scheduler:
    """`draw_seed` gives a seed in [0, 2**63) to a request that brings none: once, so preemption changes nothing."""

    def __init__(
        self,
        capacity: Capacity,
        config: SchedulerConfig,
        *,
        prefix_caching: bool,
        draw_seed: Callable[[], int],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        step_tokens = min(capacity.max_step_tokens, config.max_step_tokens or capacity.max_step_tokens)
        rows = min(capacity.max_rows, config.max_rows or capacity.max_rows, step_tokens)
        target_us = None if config.itl_target_ms is None else config.itl_target_ms * 1000
        self.capacity = capacity
        self.max_queue = config.max_queue
        self.desk = Desk(capacity, rows)
        self.planner = Planner(self.desk, capacity, Limits(step_tokens, target_us, prefix_caching))
        self.committer = Committer(self.desk, prefix_caching)
        self.flights: deque[Flight] = deque()
        self.draw_seed = draw_seed
        self.clock = clock
        self._arrivals = 0
        self._deadlines: list[tuple[float, int]] = []

    # ---- what comes in

    def submit(self, request: Request, handle: int) -> Sequence:
        """Puts a request in line. Raises RequestError where it can never run (400) or the line is full (429)."""
        desk = self.desk
        cache_tokens = desk.tables.most_tokens
        check(request, self.capacity, cache_tokens)
        if request.id in desk.ids:
            raise RequestError(f"a request with id {request.id!r} is running; ids must differ", param="request_id")
        if self.max_queue is not None and len(desk.waiting) >= self.max_queue + len(desk.state.free):
            raise RequestError(
                f"{len(desk.waiting)} requests wait and the queue holds {self.max_queue}: try again later",
                429,
                code="queue_full",
            )
        self._arrivals += 1
        seed = self.draw_seed() if request.sampling.seed is None else request.sampling.seed
        deadline = None if request.timeout_s is None else self.clock() + request.timeout_s
        ticket = Ticket(handle, self._arrivals, seed, deadline)
        seq = make_sequence(request, ticket, self.capacity, cache_tokens)
        if not seq.waits_for_grammar:
            seq.matcher = around(request, self.capacity.vocab_size, None)
        desk.live[handle] = seq
        desk.ids.add(request.id)
        desk.totals.requests += 1
        desk.wait(seq)
        if deadline is not None:
            heappush(self._deadlines, (deadline, handle))
        return seq

    def grammar_ready(self, handle: int, matcher: Matcher | None, error: str | None = None) -> None:
        """The compiled grammar of a waiting request, or why there is none; late news of a gone request is dropped."""
        seq = self.desk.live.get(handle)
        if seq is None:
            return
        if matcher is None:
            self.desk.end(seq, Finish.ERROR, error=error or "the grammar could not be compiled")
            return
        seq.matcher = around(seq.request, self.capacity.vocab_size, matcher)
        seq.waits_for_grammar = False

    def abort(self, handle: int) -> None:
        seq = self.desk.live.get(handle)
        if seq is not None:
            self.desk.end(seq, Finish.ABORT)

    def refuse(self, handle: int, error: RequestError) -> None:
        """Tells the caller of a request that never came in."""
        refused = (error.status, str(error), error.param, error.code)
        self.desk.ended.append((handle, Finish.ERROR, {"refused": refused}))

    @property
    def has_news(self) -> bool:
        """Something ended that no step's message has told yet."""
        return bool(self.desk.ended)

    def fail_all(self, message: str) -> None:
        """Ends every request with an error."""
        for seq in list(self.desk.live.values()):
            self.desk.end(seq, Finish.ERROR, error=message)

    def end_all(self) -> None:
        """Ends every request with ABORT."""
        for seq in list(self.desk.live.values()):
            self.desk.end(seq, Finish.ABORT)

    def forget_cache(self) -> None:
        """The runner has lost what it kept of prompts and pictures; nothing may be running."""
        self.desk.tables.forget_prefixes()
        self.desk.images.clear()

    def _expire(self) -> None:
        if not self._deadlines:
            return
        now = self.clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, handle = heappop(self._deadlines)
            seq = self.desk.live.get(handle)
            if seq is not None:
                self.desk.end(seq, Finish.TIMEOUT)

    # ---- a step

    @property
    def idle(self) -> bool:
        """Nothing to plan, to release or to tell until something comes in or a deadline passes."""
        desk = self.desk
        if desk.state.num_seated or desk.released or desk.ended:
            return False
        return all(seq.waits_for_grammar for seq in desk.waiting)

    @property
    def next_deadline(self) -> float | None:
        return self._deadlines[0][0] if self._deadlines else None

    def plan(self) -> StepPlan:
        """The next step. One that is not empty must be run and committed, in order."""
        self._expire()
        plan, flight = self.planner.plan()
        if plan:
            self.flights.append(flight)
        return plan

    def masks(self, plan: StepPlan) -> dict[int, bytes]:
        """Allowed tokens of the plan's masked slots, once the step before it is committed.

        A slot whose sequence has ended meanwhile gets a mask that allows everything: its draw is dropped.
        """
        return {slot: self._mask(self.desk.state.sequences[slot]) for slot in plan.masked.tolist()}

    def _mask(self, seq: Sequence | None) -> bytes:
        anything = b"\xff" * (-(-self.capacity.vocab_size // 8))
        if seq is None or seq.matcher is None:
            return anything
        try:
            return seq.matcher.mask()
        except ValueError as error:
            self.desk.end(seq, Finish.ERROR, error=f"the grammar failed: {error}")
            return anything

    def commit(self, result: StepResult) -> StepOutputs:
        """Applies the oldest planned step's result; the message for the caller."""
        return self.committer.commit(self.flights.popleft(), result)

    def flush(self) -> StepOutputs:
        """What ended without a step."""
        return merge_ended(empty_outputs(), self.desk)

    # ---- what it looks like from outside

    def stats(self, **more: Any) -> Stats:
        desk, totals = self.desk, self.desk.totals
        group = desk.tables.groups[0]
        return Stats(
            running=desk.state.num_seated,
            waiting=len(desk.waiting),
            blocks_total=group.pool.num_blocks,
            blocks_free=group.pool.num_free,
            block_tokens=group.block_tokens,
            max_rows=desk.state.rows,
            max_model_tokens=self.capacity.max_model_tokens,
            steps=totals.steps,
            requests=totals.requests,
            finished=totals.finished,
            preemptions=totals.preemptions,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=totals.cached_tokens,
            output_tokens=totals.output_tokens,
            **more,
        )
