"""A TextEngine with no model: a real session and a byte-level tokenizer on a small engine that answers by a script.

    engine = echo_text_engine()                      # a chat is answered with the last user message
    engine = echo_text_engine(script="some text")    # every request is answered with this text

`FakeEngine` implements engine/contract.Engine: token by token, `delay_s` between tokens, stop ids, max_new_tokens,
abort, queue limit, log-probabilities. `engine.fake.live` is empty when nothing leaked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import tokenizers

from tokenmill.api.codec import Codec
from tokenmill.api.contract import SamplingDefaults, TextLimits
from tokenmill.api.parsers import parser_names
from tokenmill.api.prepare import end_of_text
from tokenmill.api.session import ServedModel, TextParts
from tokenmill.engine.contract import Stats
from tokenmill.errors import RequestError
from tokenmill.tokenize.chat import internlm2
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.hf import from_backend
from tokenmill.tokenize.pieces import byte_alphabet
from tokenmill.tokenize.tokenizer import Tokenizer
from tokenmill.types import Finish, Request, StepOutput, TokenLogprobs, Usage, Want

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|plugin|>",
           "<|interpreter|>")
Script = Callable[[Request], list[int]]


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte (ids 0-255), then InternLM2's special tokens; BOS is added."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: b for b, c in byte_alphabet().items()}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    return from_backend(backend, TextFolder(Path("echo"), {}, {}, config, {}))


class FakeEngine:
    """Answers by `script`; the last scripted token may be a stop id."""

    def __init__(self, script: Script, delay_s: float, context: int, max_live: int, group: int) -> None:
        self.script, self.delay_s, self.context, self.max_live, self.group = script, delay_s, context, max_live, group
        self.live: dict[str, asyncio.Event] = {}
        self.seen: list[Request] = []
        self.closed = False

    async def generate(self, request: Request) -> AsyncIterator[StepOutput]:
        if request.id in self.live:
            raise RequestError(f"request id {request.id!r} is in use", code="duplicate_id")
        if len(self.live) >= self.max_live:
            raise RequestError(f"the queue is full ({self.max_live} requests)", status=429)
        self.seen.append(request)
        self.live[request.id] = asyncio.Event()
        try:
            async for output in self._answer(request):
                yield output
        finally:
            del self.live[request.id]

    async def _answer(self, request: Request) -> AsyncIterator[StepOutput]:
        ids = self.script(request)[: request.stop.max_new_tokens]
        prompt_logprobs = None
        if Want.PROMPT_LOGPROBS in request.want:
            prompt_logprobs = (None, *(_logprob(token, request) for token in request.prompt_ids[1:]))
        usage = Usage(prompt_tokens=len(request.prompt_ids))
        done = 0
        while True:
            await asyncio.sleep(self.delay_s)
            if self.live[request.id].is_set():
                yield StepOutput(finish=Finish.ABORT, usage=usage)
                return
            part = ids[done : done + self.group]
            hit = next((i for i, t in enumerate(part) if t in request.stop.token_ids), None)
            part = part if hit is None else part[: hit + 1]
            done += len(part)
            usage = replace(usage, completion_tokens=done)
            finish = Finish.STOP if hit is not None else Finish.LENGTH if done >= len(ids) else None
            yield StepOutput(
                tuple(part), finish, part[-1] if hit is not None else None, usage=usage,
                prompt_logprobs=prompt_logprobs,
                logprobs=tuple(_logprob(t, request) for t in part) if Want.LOGPROBS in request.want else (),
            )
            prompt_logprobs = None
            if finish is not None:
                return

    async def score(self, request: Request) -> StepOutput:
        outputs = [output async for output in self.generate(request)]
        return outputs[-1]

    def abort(self, request_id: str) -> None:
        if request_id in self.live:
            self.live[request_id].set()

    async def stats(self) -> Stats:
        return Stats(
            running=len(self.live), max_model_tokens=self.context, requests=len(self.seen), alive=not self.closed
        )

    async def close(self) -> None:
        self.closed = True


def _logprob(token: int, request: Request) -> TokenLogprobs:
    """Fixed numbers: -0.5 for the token, -1, -2 ... for the others."""
    return TokenLogprobs(token, -0.5, tuple(((token + i) % 256, -float(i)) for i in range(1, request.top_logprobs + 1)))


class EchoModel(ServedModel):
    """The served model, with its engine in reach of tests."""

    fake: FakeEngine


def prompt_of(model: EchoModel) -> str:
    """The text of the last prompt that reached the engine."""
    ids = model.fake.seen[-1].prompt_ids
    return str(model._parts.codec.tokenizer.decode(ids, skip_special_tokens=False)).removeprefix("<s>")


def echo_text_engine(
    *, name: str = "echo", script: str | list[int] | Script | None = None, delay_s: float = 0.0,
    max_model_tokens: int = 4096, max_live: int = 10_000, group: int = 1,
) -> EchoModel:
    """`script`: text or ids every answer consists of (then the end of turn), or a function of the engine's request."""
    tokenizer = byte_tokenizer()
    template = replace(internlm2.TEMPLATE, meta_instruction=None)
    folder = TextFolder(Path("echo"), {"eos_token_id": tokenizer.vocabulary.eos_id}, {}, {}, {})
    engine = FakeEngine(_script(script, tokenizer), delay_s, max_model_tokens, max_live, group)
    size = tokenizer.vocabulary.size
    model = EchoModel(
        engine,
        TextParts(
            name, Codec(tokenizer, template, size), TextLimits(max_model_tokens, size),
            end_of_text(folder, tokenizer, template), SamplingDefaults(),
            parser_names(None, None, tokenizer.vocabulary),
        ),
    )
    model.fake = engine
    return model


def _script(script: str | list[int] | Script | None, tokenizer: Tokenizer) -> Script:
    if callable(script):
        return script
    end = tokenizer.encode("<|im_end|>", False)
    if script is not None:
        ids = tokenizer.encode(script, False) if isinstance(script, str) else list(script)
        return lambda request: ids + end
    return lambda request: _last_user_text(request, tokenizer) + end


def _last_user_text(request: Request, tokenizer: Tokenizer) -> list[int]:
    """The last user turn of a chat; the whole prompt of a completion, without BOS."""
    text = tokenizer.decode(request.prompt_ids, skip_special_tokens=False)
    mark = "<|im_start|>user\n"
    if mark in text:
        text = text[text.rindex(mark) + len(mark) :].split("<|im_end|>")[0]
    return tokenizer.encode(text.removeprefix("<s>"), False)
