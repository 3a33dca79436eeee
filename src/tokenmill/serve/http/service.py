"""What every handler of one server shares: the engine, who may run, who runs, and whether the server takes work at all.

`Service.run` is the one way from a handler into the engine: places, session, deadline, metrics and failures are dealt
with here, so that no endpoint can forget one. Whatever ends the returned generator ends the engine's requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from starlette.requests import Request

from tokenmill.api.contract import TextEngine
from tokenmill.errors import EngineDeadError, RequestError
from tokenmill.serve.http.admission import Admission
from tokenmill.serve.http.conversations import Conversations
from tokenmill.serve.http.fanout import merge
from tokenmill.serve.http.metrics import Metrics, Timeline
from tokenmill.serve.http.options import ServerOptions
from tokenmill.types import Chunk, Finish, TextRequest


class Phase(StrEnum):
    """Where a server is in its life. Only READY takes work; one that sleeps answers what needs no engine."""

    LOADING = "initializing"
    READY = "healthy"
    SLEEPING = "sleeping"
    DRAINING = "draining"


class Pulse(StrEnum):
    GOOD = "good"
    SILENT = "silent"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request as the engine will see it: its choices, in order. `session` is a client's own id, or None."""

    id: str
    model: str
    created: int
    requests: tuple[TextRequest, ...]
    session: int | None = None

    @property
    def timeout_s(self) -> float | None:
        return self.requests[0].timeout_s


class Service:
    """The state of one server. Lives on one event loop; no locks."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.phase = Phase.LOADING
        self.in_flight = 0
        self.live: set[str] = set()
        self.sessions: dict[int, Job] = {}
        self.conversations = Conversations()
        self._steering = asyncio.Lock()
        self._engine: TextEngine | None = None
        self._admission: Admission | None = None
        self._metrics: Metrics | None = None

    async def attach(self, engine: TextEngine) -> None:
        """The model is there: from now on the server takes work."""
        stats = await engine.stats()
        limit = self.options.max_concurrent_requests
        self._engine = engine
        self._admission = Admission(limit or max(stats.max_rows, 1), self.options.max_queue, holds=limit is not None)
        self._metrics = Metrics(engine.name, engine.limits.max_model_tokens)
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    @property
    def loaded(self) -> bool:
        return self._engine is not None

    @property
    def engine(self) -> TextEngine:
        if self._engine is None:
            raise RequestError("the model is still loading; try again later", 503, code="loading")
        return self._engine

    @property
    def admission(self) -> Admission | None:
        return self._admission

    @property
    def metrics(self) -> Metrics:
        if self._metrics is None:
            raise RequestError("the model is still loading; try again later", 503, code="loading")
        return self._metrics

    async def sleep(self, level: int) -> None:
        """No new work, what runs ends with the reason `abort`, and the engine gives its memory back."""
        async with self._steering:
            await self._steer(self.engine.sleep(level))

    async def wakeup(self, tags: tuple[str, ...]) -> None:
        """Wakes the parts named (all where none is); work is taken once everything is awake."""
        async with self._steering:
            await self._steer(self.engine.wakeup(tags))

    async def _steer(self, order: Coroutine[Any, Any, None]) -> None:
        """Refuses work before the engine does, and takes it again where the engine, whatever it said, is awake."""
        if self.phase is Phase.READY:
            self.phase = Phase.SLEEPING
        try:
            await order
        finally:
            if self.phase is Phase.SLEEPING and not (await self.engine.stats()).asleep:
                self.phase = Phase.READY

    def refusal(self) -> RequestError | None:
        """Why no work is taken now, if so."""
        if self.phase is Phase.SLEEPING:
            return RequestError("the model sleeps; POST /wakeup wakes it", 503, code="sleeping")
        if self.phase is Phase.LOADING:
            return RequestError("the model is still loading; try again later", 503, code="loading")
        if self.phase is Phase.DRAINING:
            return RequestError("the server is shutting down", 503, code="draining")
        return None

    async def health(self) -> tuple[bool, str, str]:
        """(takes work, status word, one line). Answers within a second whatever the engine does."""
        if (refusal := self.refusal()) is not None:
            return False, self.phase.value, str(refusal)
        match await self.pulse():
            case Pulse.GOOD:
                return True, "healthy", "ready"
            case Pulse.SILENT:
                return False, "unhealthy", "the engine does not answer"
            case _:
                return False, "unhealthy", "the engine is not running"

    async def pulse(self) -> Pulse:
        """Whether the engine lives; known within a second. One that falls asleep or wakes may take its time."""
        if self._steering.locked():
            return Pulse.GOOD
        try:
            async with asyncio.timeout(0.8):
                stats = await self.engine.stats()
        except TimeoutError:
            return Pulse.SILENT
        except EngineDeadError:
            return Pulse.DEAD
        return Pulse.GOOD if stats.alive else Pulse.DEAD

    def abort_all(self) -> None:
        """Ends every request in the engine; their answers end with the reason `abort`."""
        for request_id in tuple(self.live):
            self.engine.abort(request_id)

    def abort_request(self, request_id: str) -> None:
        """Ends the choices of one answer, by the id it has in its body. Raises RequestError 400 where there is none."""
        key = request_id.rpartition("-")[2].rpartition("_")[2]
        mine = [one for one in self.live if key and one.split("-")[1] == key]
        if not mine:
            raise RequestError("no request of this request_id is running", 400, param="request_id")
        for one in mine:
            self.engine.abort(one)

    def abort_session(self, session: int) -> None:
        """Ends what runs under a client's session id. Raises RequestError 400 where nothing does."""
        job = self.sessions.get(session)
        if job is None:
            raise RequestError(f"no request of session_id {session} is running", 400, param="session_id")
        for request in job.requests:
            self.engine.abort(request.id)

    async def run(self, job: Job) -> AsyncGenerator[tuple[int, Chunk], None]:
        """(choice, chunk) of every choice as they come. Raises RequestError for anything that ends the whole answer."""
        admission = self._admission
        assert admission is not None, "the gate lets no work in before the engine is attached"
        self._take_session(job)
        places = 0
        started_s = time.monotonic()
        try:
            places = await admission.acquire(len(job.requests), job.timeout_s)
            waited_s = self.metrics.queued(started_s)
            streams = [self._one(_less(request, waited_s)) for request in job.requests]
            async with aclosing(merge(streams)) as merged:
                async for index, chunk in merged:
                    yield index, chunk
        finally:
            admission.release(places)
            self._give_session(job.session)

    async def _one(self, request: TextRequest) -> AsyncGenerator[Chunk, None]:
        timeline = Timeline(self.metrics)
        self.live.add(request.id)
        try:
            async with aclosing(self.engine.generate(request)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    timeline.saw(chunk)
                    _raise_failure(chunk, timeline)
                    yield chunk
        finally:
            self.live.discard(request.id)
            timeline.end()

    def _take_session(self, job: Job) -> None:
        session = job.session
        if session is None:
            return
        if session in self.sessions:
            raise RequestError(
                f"session_id {session} is occupied by a running request", 400, param="session_id", code="session_busy"
            )
        self.sessions[session] = job

    def _give_session(self, session: int | None) -> None:
        if session is not None:
            self.sessions.pop(session, None)


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _less(request: TextRequest, waited_s: float) -> TextRequest:
    if request.timeout_s is None:
        return request
    return replace(request, timeout_s=max(request.timeout_s - waited_s, 1e-3))


def _raise_failure(chunk: Chunk, timeline: Timeline) -> None:
    """A failed choice ends the whole answer; a deadline does only where nothing was said yet."""
    if chunk.finish is Finish.ERROR:
        raise RequestError(chunk.error or "the engine could not finish this request", 500, code="engine_error")
    if chunk.finish is Finish.TIMEOUT and timeline.answer_tokens == 0:
        raise RequestError("the request's deadline passed before its first token", 504, code="timeout")
