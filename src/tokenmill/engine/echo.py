"""An Engine with no runner and no scheduler: answers with its prompt, or with what a script says, at a set rate.

For tests of faces and clients, and to measure what everything above the engine costs. It keeps the contract: limits,
stop rules, duplicate ids, a bounded queue, abort, timeout, one last output with a finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from time import monotonic

from tokenmill.engine.contract import Stats
from tokenmill.errors import EngineDeadError, RequestError
from tokenmill.types import Finish, Request, StepOutput, TokenLogprobs, Usage, Want

Script = Callable[[Request], tuple[int, ...]]


def prompt_back(request: Request) -> tuple[int, ...]:
    return request.prompt_ids


@dataclass(slots=True)
class EchoOptions:
    """`tokens_per_s` of each answer (0: as fast as it goes); at most `max_rows` answers at once, `max_queue` wait."""

    script: Script = prompt_back
    tokens_per_s: float = 0.0
    first_token_s: float = 0.0
    max_rows: int = 256
    max_queue: int | None = None
    max_model_tokens: int = 8192
    vocab_size: int = 1 << 30


@dataclass(slots=True)
class _Answer:
    request: Request
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    since: float = field(default_factory=monotonic)


class EchoEngine:
    """Use on one event loop at a time."""

    def __init__(self, options: EchoOptions | None = None) -> None:
        self.options = options or EchoOptions()
        self.alive = True
        self._live: dict[str, _Answer] = {}
        self._running = 0
        self._counts = {"requests": 0, "finished": 0, "prompt_tokens": 0, "output_tokens": 0}

    async def generate(self, request: Request) -> AsyncIterator[StepOutput]:
        answer = self._enter(request)
        try:
            seated = await self._sit(answer)
            if not seated:
                yield StepOutput(finish=self._why(answer), usage=Usage(len(request.prompt_ids)))
                return
            try:
                async for output in self._speak(answer):
                    yield output
            finally:
                self._running -= 1
        finally:
            self._live.pop(request.id, None)
            self._counts["finished"] += 1

    def _enter(self, request: Request) -> _Answer:
        count, options = len(request.prompt_ids), self.options
        if not self.alive:
            raise EngineDeadError("the engine has ended; start it again")
        if count == 0 or count >= options.max_model_tokens:
            raise RequestError(
                f"the prompt has {count} tokens; it must have 1 to {options.max_model_tokens - 1}",
                param="prompt",
                code="context_length_exceeded" if count else None,
            )
        if request.id in self._live:
            raise RequestError(f"a request with id {request.id!r} is running; ids must differ", param="request_id")
        room = None if options.max_queue is None else options.max_rows + options.max_queue
        if room is not None and len(self._live) >= room:
            raise RequestError(f"{len(self._live)} requests are here and {room} fit: try again later", 429)
        answer = _Answer(request)
        self._live[request.id] = answer
        self._counts["requests"] += 1
        self._counts["prompt_tokens"] += count
        return answer

    def _why(self, answer: _Answer) -> Finish | None:
        """Why an answer must end now, if it must."""
        if answer.aborted.is_set():
            return Finish.ABORT
        limit = answer.request.timeout_s
        return Finish.TIMEOUT if limit is not None and monotonic() - answer.since >= limit else None

    async def _sit(self, answer: _Answer) -> bool:
        """Waits for a seat; False where the request ended in the queue."""
        while self._running >= self.options.max_rows:
            if self._why(answer) is not None:
                return False
            await self._pause(answer, 0.005)
        self._running += 1
        return True

    async def _pause(self, answer: _Answer, seconds: float) -> None:
        """Sleeps, or returns at once when aborted."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        try:
            await asyncio.wait_for(answer.aborted.wait(), seconds)
        except TimeoutError:
            return

    async def _speak(self, answer: _Answer) -> AsyncIterator[StepOutput]:
        request, stop = answer.request, answer.request.stop
        prompt = len(request.prompt_ids)
        most = min(stop.max_new_tokens, self.options.max_model_tokens - prompt)
        script = self.options.script(request)[:most]
        pace = 1.0 / self.options.tokens_per_s if self.options.tokens_per_s else 0.0
        await self._pause(answer, self.options.first_token_s)
        for index, token in enumerate(script):
            await self._pause(answer, pace)
            finish = self._why(answer)
            if finish is not None:
                yield StepOutput(finish=finish, usage=Usage(prompt, index))
                return
            self._counts["output_tokens"] += 1
            stopped = token in stop.token_ids and index >= stop.min_new_tokens
            is_last = stopped or index + 1 == len(script)
            yield StepOutput(
                token_ids=(token,),
                finish=self._finish(stopped, index + 1 == most) if is_last else None,
                stop_token_id=token if stopped else None,
                logprobs=self._logprobs(request, token),
                usage=Usage(prompt, index + 1),
            )
            if is_last:
                return
        yield StepOutput(finish=Finish.LENGTH if most == 0 else Finish.STOP, usage=Usage(prompt))

    @staticmethod
    def _finish(stopped: bool, full: bool) -> Finish:
        return Finish.LENGTH if full and not stopped else Finish.STOP

    @staticmethod
    def _logprobs(request: Request, token: int) -> tuple[TokenLogprobs, ...]:
        """An echo is certain of itself."""
        if not request.want & Want.LOGPROBS:
            return ()
        return (TokenLogprobs(token, 0.0, ((token, 0.0),) if request.top_logprobs else ()),)

    async def score(self, request: Request) -> StepOutput:
        parts = [output async for output in self.generate(request)]
        return replace(
            parts[-1],
            token_ids=tuple(token for part in parts for token in part.token_ids),
            logprobs=tuple(one for part in parts for one in part.logprobs),
        )

    def abort(self, request_id: str) -> None:
        answer = self._live.get(request_id)
        if answer is not None:
            answer.aborted.set()

    async def stats(self) -> Stats:
        return Stats(
            running=self._running,
            waiting=len(self._live) - self._running,
            max_rows=self.options.max_rows,
            max_model_tokens=self.options.max_model_tokens,
            alive=self.alive,
            **self._counts,  # type: ignore[arg-type]
        )

    async def sleep(self, level: int = 1) -> None:
        raise RequestError("this engine has no memory to give back", 501)

    async def wakeup(self, tags: tuple[str, ...] = ()) -> None:
        raise RequestError("this engine never sleeps", 501)

    async def close(self) -> None:
        self.alive = False
        for answer in list(self._live.values()):
            answer.aborted.set()
