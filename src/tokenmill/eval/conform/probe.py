"""What checks are made of: a server to ask, expectations with reasons, and the run over all checks of the room.

A check is a function of a `Probe` in a module of this folder that has `GROUP` and `CHECKS`; its docstring is the
promise. It passes or raises Fault. Answers of weak models are no fault: only shapes, counts and constraints are judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import httpx

GROUPS = ("models", "chat", "completions", "streams", "errors", "structured", "tools", "responses", "messages",
          "lm_eval")  # fmt: skip
HELLO = ({"role": "user", "content": "Say hello."},)
# What is drawn is drawn alike in every run.
SEED = 1
ANTHROPIC = {"anthropic-version": "2023-06-01"}


class Fault(Exception):
    """A promise not kept; the text says how."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`reason` is empty where the check passed."""

    group: str
    promise: str
    reason: str


class Probe:
    """One server and one of its models."""

    def __init__(self, client: httpx.Client, model: str) -> None:
        self.client = client
        self.model = model

    def post(self, path: str, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
        """The JSON answer, which must have `status`."""
        reply = self.client.post(path, json=body, headers=headers)
        expect(reply.status_code == status, f"{path} answers {reply.status_code}, not {status}: {reply.text[:160]}")
        return parsed(reply.text)

    def chat(self, **fields: Any) -> Any:
        body = {"model": self.model, "messages": HELLO, "max_tokens": 12, "seed": SEED, **fields}
        return self.post("/v1/chat/completions", body)

    def complete(self, prompt: Any, **fields: Any) -> Any:
        body = {"model": self.model, "prompt": prompt, "max_tokens": 6, "seed": SEED, **fields}
        return self.post("/v1/completions", body)

    def messages(self, **fields: Any) -> Any:
        body = {"model": self.model, "messages": HELLO, "max_tokens": 12, "temperature": 0, **fields}
        return self.post("/v1/messages", body, headers=ANTHROPIC)

    def stream(self, path: str, **fields: Any) -> list[str]:
        """The data of every event, in order."""
        body = {"model": self.model, "stream": True, "temperature": 0, **fields}
        reply = self.client.post(path, json=body, headers=ANTHROPIC)
        expect(reply.status_code == 200, f"{path} answers {reply.status_code}: {reply.text[:160]}")
        kind = reply.headers.get("content-type", "")
        expect(kind.startswith("text/event-stream"), f"content-type of a stream is {kind!r}, not text/event-stream")
        return list(events(reply.text))

    def chunks(self, path: str, **fields: Any) -> list[Any]:
        """OpenAI's events, up to the end mark, which must be there."""
        data = self.stream(path, **fields)
        expect(bool(data) and data[-1] == "[DONE]", "the stream does not end with data: [DONE]")
        return [parsed(text) for text in data[:-1]]


def events(text: str) -> Iterator[str]:
    for block in text.split("\n\n"):
        lines = [line.removeprefix("data:").strip() for line in block.splitlines() if line.startswith("data:")]
        if lines:
            yield "\n".join(lines)


def expect(condition: bool, reason: str) -> None:
    if not condition:
        raise Fault(reason)


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Fault(f"not JSON: {text[:120]!r}") from None


def run(probe: Probe, groups: tuple[str, ...] = GROUPS) -> Iterator[Outcome]:
    """Every check of the groups, one after another."""
    for group in groups:
        module = import_module(f"{__package__}.{group}")
        for check in module.CHECKS:
            yield Outcome(group, str(check.__doc__).strip(), _reason(check, probe))


def _reason(check: Callable[[Probe], None], probe: Probe) -> str:
    try:
        check(probe)
    except Fault as fault:
        return str(fault) or "failed"
    except httpx.HTTPError as error:
        return f"no answer: {type(error).__name__}"
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        # The answer lacks a field that every client of this API reads.
        return f"the answer has another shape: {type(error).__name__} {error}"
    return ""
