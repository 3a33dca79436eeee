"""A small TextEngine for server tests: words in, the same words out, one token a word, at a chosen pace.

It keeps the promises of api/contract.py that a server leans on: the first chunk carries the prompt's ids, the last one
the finish; closing the iterator aborts; ids are unique while live; refusals are RequestErrors. `live` must be empty
after every test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenmill.api.contract import SamplingDefaults, TextLimits
from tokenmill.engine.contract import Stats
from tokenmill.errors import EngineDeadError, RequestError
from tokenmill.types import Chunk, Finish, Message, RawArray, TextLogprob, TextRequest, Usage, Want

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOCAB_SIZE = 1000
_BLOCKS = 256


class FakeCodec:
    """A word is an id: words get ids as they are first seen."""

    def __init__(self) -> None:
        self.words: list[str] = list(WORDS)

    async def encode(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        ids = []
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
            ids.append(self.words.index(word) % VOCAB_SIZE)
        return tuple(ids)

    async def decode(self, ids: tuple[int, ...], skip_special_tokens: bool = True) -> str:
        return " ".join(self.words[i] if i < len(self.words) else f"w{i}" for i in ids)

    async def prompt_ids(self, request: TextRequest, tools: tuple[Message, ...]) -> tuple[int, ...]:
        if isinstance(request.prompt, str):
            return await self.encode(request.prompt)
        if request.prompt and isinstance(request.prompt[0], dict):
            return await self.encode(" ".join(m["content"] or "" for m in request.prompt))
        return request.prompt  # type: ignore[return-value]

    async def render(
        self, messages: tuple[Message, ...], tools: tuple[Message, ...] = (), options: dict[str, Any] | None = None
    ) -> str:
        return " ".join(f"<{m['role']}> {m['content'] or ''}" for m in messages)


@dataclass
class FakeTextEngine:
    """Answers "echo" and then the prompt's words, again and again, until max_new_tokens or, without one, once around.

    A prompt holding the word "boom" fails in the engine; "dead" makes the engine die; seed n adds word n % 10 first.
    """

    name: str = "fake"
    step_s: float = 0.0
    max_model_tokens: int = 512
    max_rows: int = 64
    defaults: SamplingDefaults = SamplingDefaults()
    live: dict[str, TextRequest] = field(default_factory=dict)
    seen: list[TextRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    peak: int = 0
    alive: bool = True
    closed: bool = False
    asleep: tuple[str, ...] = ()
    refuses: Exception | None = None

    def __post_init__(self) -> None:
        self.codec = FakeCodec()
        self.limits = TextLimits(self.max_model_tokens, VOCAB_SIZE)

    def generate(self, request: TextRequest) -> AsyncIterator[Chunk]:
        return self._generate(request)

    async def _generate(self, request: TextRequest) -> AsyncIterator[Chunk]:
        if not self.alive:
            raise EngineDeadError("the engine is not running")
        if request.id in self.live:
            raise RequestError(f"id {request.id} is live", 400)
        self.seen.append(request)
        self.live[request.id] = request
        self.peak = max(self.peak, len(self.live))
        finished = False
        try:
            async for chunk in self._answer(request):
                finished = chunk.finish is not None
                yield chunk
        finally:
            if self.live.pop(request.id, None) is not None and not finished:
                self.aborted.append(request.id)

    async def _answer(self, request: TextRequest) -> AsyncIterator[Chunk]:
        ids = await self.codec.prompt_ids(request, request.tools)
        room = self.max_model_tokens - len(ids)
        if room <= 0:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; the model's context length is {self.max_model_tokens}",
                code="context_length_exceeded",
            )
        words = [self.codec.words[i] if i < len(self.codec.words) else f"w{i}" for i in ids]
        answer = ["echo", *words]
        if request.sampling.seed is not None:
            answer.insert(0, WORDS[request.sampling.seed % 10])
        wished = room if request.ignore_eos else len(answer)
        most = min(room, wished if request.max_new_tokens is None else request.max_new_tokens)
        prompt_logprobs = tuple(None if i == 0 else self._logprob(w, request) for i, w in enumerate(words))
        first: dict[str, Any] = {"prompt_ids": ids}
        if request.want & Want.POOL:
            pool = np.array([len(ids), 3, 4], "<f4")
            first["arrays"] = {"pool": RawArray(pool.shape, "<f4", pool.tobytes())}
        if request.prompt_logprobs:
            first["prompt_logprobs"] = prompt_logprobs
        stopped = request.max_new_tokens is None or request.max_new_tokens > len(answer)
        deadline = None if request.timeout_s is None else asyncio.get_running_loop().time() + request.timeout_s
        last = min(most, len(answer)) if not request.ignore_eos else most
        text = ""
        for step in range(max(last, 1)):
            await asyncio.sleep(self.step_s)
            if "boom" in words:
                yield Chunk(finish=Finish.ERROR, error="this request failed in the engine")
                return
            if "dead" in words:
                self.alive = False
                raise EngineDeadError("the engine died")
            if request.id not in self.live:
                yield Chunk(finish=Finish.ABORT, usage=Usage(len(ids), step))
                return
            if deadline is not None and asyncio.get_running_loop().time() > deadline:
                yield Chunk(finish=Finish.TIMEOUT, usage=Usage(len(ids), step))
                return
            if most == 0:
                yield Chunk(finish=Finish.LENGTH, usage=Usage(len(ids), 0), **first)
                return
            word = answer[step % len(answer)]
            piece = word if step == 0 else " " + word
            text += piece
            stop = next((s for s in request.stop_strings if s in text), None)
            finish: Finish | None = None
            if stop is not None:
                piece, finish = piece[: max(0, text.index(stop) - (len(text) - len(piece)))], Finish.STOP
            elif step + 1 == last:
                finish = Finish.STOP if stopped and not request.ignore_eos else Finish.LENGTH
            yield Chunk(
                text=piece, token_ids=(step,), finish=finish, stop_reason=stop,
                logprobs=(self._logprob(piece, request),) if request.logprobs else (),
                usage=Usage(len(ids), step + 1), **first,
            )
            first = {}
            if finish is not None:
                return

    def _logprob(self, word: str, request: TextRequest) -> TextLogprob:
        top = tuple(TextLogprob(w, w.encode(), i, -1.0 - i) for i, w in enumerate(WORDS[: request.top_logprobs]))
        return TextLogprob(word, word.encode(), 7, -0.5, top)

    def abort(self, request_id: str) -> None:
        if self.live.pop(request_id, None) is not None:
            self.aborted.append(request_id)

    async def stats(self) -> Stats:
        used = len(self.live)
        return Stats(
            running=used, blocks_total=_BLOCKS, blocks_free=_BLOCKS - used, max_rows=self.max_rows,
            max_model_tokens=self.max_model_tokens, alive=self.alive, asleep=self.asleep,
        )

    async def sleep(self, level: int = 1) -> None:
        """`refuses`, where set, is raised in its place, as in `wakeup`."""
        for request_id in tuple(self.live):
            self.abort(request_id)
        self._obey(("weights", "kv_cache"))

    async def wakeup(self, tags: tuple[str, ...] = ()) -> None:
        self._obey(tuple(part for part in self.asleep if tags and part not in tags))

    def _obey(self, asleep: tuple[str, ...]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.asleep = asleep

    async def close(self) -> None:
        self.closed = True
