"""The loop: take in, plan, run, commit, tell. A plain thread; nothing else touches the scheduler.

Under overlap one step is always ahead: while it runs, the next one is planned and queued behind it, and only then is it
committed. Masks of the new step are computed after that commit, while its forward runs. Everything that comes from
outside is a call put into the inbox and made by this thread between steps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter
from typing import Any

from tokenmill.engine.contract import Pending, Runner, Stats, StepOutputs
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.sequence import Matcher
from tokenmill.errors import RequestError, TokenmillError
from tokenmill.log import get_logger, safe
from tokenmill.types import GrammarSpec, Request

Publish = Callable[[StepOutputs], None]
Compiler = Callable[[GrammarSpec], Matcher]
# Called once with what went wrong, or None.
Reply = Callable[[Exception | None], None]
DEAD = "the engine has stopped: "
LONGEST_NAP_S = 1.0


class Core:
    """`publish` is called once a step, on this thread, and must not block.

    `busy_since` is the time at which the turn under way began, None between turns: who watches for hangs reads it.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        publish: Publish,
        *,
        overlap: bool,
        compiler: Compiler | None = None,
        frozen: bool = False,
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.publish = publish
        self.overlap = overlap
        self.busy_since: float | None = None
        self.failure: str | None = None
        self.plan_us = 0.0
        self.commit_us = 0.0
        self._compiler = compiler
        self._frozen = frozen
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._ahead: Pending | None = None
        self._closing = False
        self._asleep: tuple[str, ...] = ()
        self._pool: ThreadPoolExecutor | None = None

    # ---- from any thread

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        """Has the loop make a call between two steps."""
        self._inbox.put(partial(call, *arguments))

    def close(self) -> None:
        """The loop ends after the step under way; live requests end with ABORT."""
        self.post(self._close)

    # ---- the loop

    def run(self) -> None:
        """Until closed or failed. A failure ends every request with an error and is kept in `failure`."""
        try:
            while not self._closing:
                self._take_in(block=self.scheduler.idle and self._ahead is None)
                self.busy_since = monotonic()
                self.turn()
                self.busy_since = None
        except Exception as error:  # noqa: BLE001 - whatever the runner raises, callers must hear of it
            self._die(error)
        finally:
            self._finish()

    def turn(self) -> None:
        """One step: the next is queued before the last one is committed."""
        begun = perf_counter()
        plan = self.scheduler.plan()
        self.plan_us += (perf_counter() - begun) * 1e6
        pending = self.runner.run(plan) if plan else None
        self._land()
        if pending is not None and len(plan.masked):
            pending.sample(self.scheduler.masks(plan))
        self._ahead = pending
        if not self.overlap:
            self._land()
        if self._ahead is None and self.scheduler.has_news:
            self.publish(self.scheduler.flush())

    def _land(self) -> None:
        """Waits for the step under way, commits it and tells."""
        if self._ahead is None:
            return
        result = self._ahead.result()
        self._ahead = None
        begun = perf_counter()
        outputs = self.scheduler.commit(result)
        self.commit_us += (perf_counter() - begun) * 1e6
        if len(outputs.handles):
            self.publish(outputs)

    def _take_in(self, block: bool) -> None:
        """Makes the calls in the inbox; with `block`, waits for one (or for the next deadline)."""
        try:
            if block:
                if self._frozen:
                    gc.collect(0)
                self._inbox.get(timeout=self._nap_s())()
            while True:
                self._inbox.get_nowait()()
        except Empty:
            return

    def _nap_s(self) -> float:
        deadline = self.scheduler.next_deadline
        return LONGEST_NAP_S if deadline is None else min(max(deadline - monotonic(), 0.001), LONGEST_NAP_S)

    # ---- calls made by the loop

    def submit(self, request: Request, handle: int) -> None:
        """A refused request is answered like one that ended, with `refused` in its extras."""
        try:
            if self._asleep:
                raise RequestError("the engine sleeps; POST /wakeup wakes it", 503, code="sleeping")
            seq = self.scheduler.submit(request, handle)
            if seq.waits_for_grammar:
                self._compile(request, handle)
        except RequestError as error:
            self.scheduler.refuse(handle, error)

    def abort(self, handle: int) -> None:
        self.scheduler.abort(handle)

    def tell_stats(self, reply: Callable[[Stats], None]) -> None:
        reply(self.scheduler.stats(plan_us=self.plan_us, commit_us=self.commit_us, asleep=self._asleep))

    def sleep(self, level: int, reply: Reply) -> None:
        """Ends what runs, lets the step under way land, and has the runner give its memory back."""
        self.scheduler.end_all()
        while self._ahead is not None or not self.scheduler.idle:
            self.turn()
        self.scheduler.forget_cache()
        self._control(reply, "sleep", level=level)

    def wake(self, tags: tuple[str, ...], reply: Reply) -> None:
        if not self._asleep:
            reply(None)
            return
        self._control(reply, "wake", tags=tags)

    def _control(self, reply: Reply, op: str, **arguments: Any) -> None:
        """What the user can mend is told; whatever else the runner raises is the engine's end."""
        try:
            self._asleep = self.runner.control(op, **arguments)
        except (TokenmillError, ValueError) as error:
            reply(error)
        else:
            reply(None)

    def _close(self) -> None:
        self._closing = True

    def _compile(self, request: Request, handle: int) -> None:
        """Off this thread; the request waits meanwhile and holds nobody up."""
        if self._compiler is None:
            self.scheduler.grammar_ready(handle, None, "this engine was started without grammars")
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(2, "grammar")
        future = self._pool.submit(self._compiler, request.grammar)  # type: ignore[arg-type]
        future.add_done_callback(partial(self._compiled, handle))

    def _compiled(self, handle: int, future: Future[Matcher]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self.post(self.scheduler.grammar_ready, handle, future.result())
        else:
            self.post(self.scheduler.grammar_ready, handle, None, f"the grammar could not be compiled: {error}")

    # ---- the end

    def _die(self, error: Exception) -> None:
        self.failure = safe(f"{type(error).__name__}: {error}", 300)
        get_logger().error("the engine's loop failed", exc_info=error)
        self.scheduler.fail_all(DEAD + self.failure)

    def _finish(self) -> None:
        """Whoever is still there hears the end; the runner is closed whatever it says to that."""
        self.scheduler.end_all()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self.scheduler.has_news:
            self.publish(self.scheduler.flush())
        try:
            if self._ahead is not None and self.failure is None:
                self._ahead.result()
        finally:
            self.busy_since = None
            self.runner.close()
