"""What a choice amounts to once its chunks are in, and the pieces every OpenAI-shaped answer is made of."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tokenmill.errors import RequestError
from tokenmill.serve.http.service import Job, Service
from tokenmill.types import Chunk, Finish, RawArray, TextLogprob, ToolCallDelta, Usage

# JSON has no infinity; OpenAI's own servers send this for a token that cannot be drawn.
LEAST_LOGPROB = -9999.0


@dataclass(slots=True)
class Collected:
    """One choice so far."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    logprobs: list[TextLogprob] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    prompt_ids: tuple[int, ...] = ()
    prompt_logprobs: tuple[TextLogprob | None, ...] | None = None
    token_ids: list[int] = field(default_factory=list)
    arrays: dict[str, RawArray] = field(default_factory=dict)
    finish: Finish | None = None
    stop_reason: str | int | None = None
    usage: Usage = Usage()

    def add(self, chunk: Chunk) -> None:
        if chunk.text:
            self.text.append(chunk.text)
        if chunk.reasoning:
            self.reasoning.append(chunk.reasoning)
        self.logprobs.extend(chunk.logprobs)
        self.token_ids.extend(chunk.token_ids)
        self.arrays.update(chunk.arrays)
        for delta in chunk.tool_calls:
            self._add_call(delta)
        if chunk.prompt_ids is not None:
            self.prompt_ids = chunk.prompt_ids
        if chunk.prompt_logprobs is not None:
            self.prompt_logprobs = chunk.prompt_logprobs
        self.note_end(chunk)

    def note_end(self, chunk: Chunk) -> None:
        """What a stream must remember of a chunk it has passed on."""
        if chunk.tool_calls:
            self.calls.setdefault(0, {})
        self.usage = chunk.usage
        self.finish = chunk.finish or self.finish
        self.stop_reason = self.stop_reason if chunk.stop_reason is None else chunk.stop_reason

    def _add_call(self, delta: ToolCallDelta) -> None:
        blank = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        call = self.calls.setdefault(delta.index, blank)
        call["id"] = delta.id or call["id"]
        call["function"]["name"] = delta.name or call["function"]["name"]
        call["function"]["arguments"] += delta.arguments

    @property
    def finish_reason(self) -> str:
        return finish_reason(self.finish, bool(self.calls))


async def collect(service: Service, job: Job) -> list[Collected]:
    """Every choice of a job to its end. A deadline that passes ends the whole answer (504)."""
    choices = [Collected() for _ in job.requests]
    async with aclosing(service.run(job)) as chunks:
        async for index, chunk in chunks:
            choices[index].add(chunk)
    if any(choice.finish is Finish.TIMEOUT for choice in choices):
        raise RequestError("the request's deadline passed", 504, code="timeout")
    return choices


def finish_reason(finish: Finish | None, called: bool) -> str:
    """The word of the wire; a stop after tool calls is `tool_calls`."""
    if finish is None:
        return Finish.ABORT.value
    return "tool_calls" if called and finish is Finish.STOP else finish.value


def usage_body(prompts: list[Usage], answers: list[Usage]) -> dict[str, Any]:
    """`prompts`: one per prompt, however many choices it has; `answers`: one per choice."""
    prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
    completion_tokens = sum(usage.completion_tokens for usage in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
        "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning_tokens for usage in answers)},
    }


def answer_ids(ids: list[int] | tuple[int, ...]) -> dict[str, Any]:
    """The ids of a choice, or of a piece of one, where `return_token_ids` asks: LMDeploy's name and vLLM's."""
    return {"output_ids": list(ids), "token_ids": list(ids)}


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def chat_logprobs(logprobs: list[TextLogprob] | tuple[TextLogprob, ...]) -> dict[str, Any]:
    """The shape of chat: one entry a token, with its bytes and its alternatives."""
    return {"content": [{**_entry(item), "top_logprobs": [_entry(top) for top in item.top]} for item in logprobs]}


def logprob_pairs(logprobs: list[TextLogprob] | tuple[TextLogprob, ...]) -> dict[str, Any]:
    """What LMDeploy's `return_logprob` asks for."""
    return {"output_token_logprobs": [[finite(item.logprob), item.token_id] for item in logprobs]}


def _entry(item: TextLogprob) -> dict[str, Any]:
    return {"token": item.token, "logprob": finite(item.logprob), "bytes": list(item.token_bytes)}
