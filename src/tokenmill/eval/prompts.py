"""A user's own prompts and what right answers hold, and how a served model does on them: right answers, tokens/s.

A prompts file is text with one prompt a line, or JSON lines: {"prompt": TEXT or "messages": [..], "expect": TEXT or
[TEXT, ..], "regex": PATTERN}. An answer passes when every `expect` is in it and `regex` is found; prompts with neither
are answered and not judged.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.api.contract import TextEngine
from tokenmill.errors import FormatError, RequestError
from tokenmill.log import safe
from tokenmill.types import Message, Sampling, TextRequest

CONCURRENCY = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """`ids` in place of messages: a piece of plain text to go on with."""

    messages: tuple[Message, ...] = ()
    expect: tuple[str, ...] = ()
    regex: str = ""
    ids: tuple[int, ...] = ()

    @property
    def judged(self) -> bool:
        return bool(self.expect or self.regex)

    def passes(self, answer: str) -> bool:
        return all(word in answer for word in self.expect) and re.search(self.regex, answer) is not None


@dataclass(frozen=True, slots=True)
class Answers:
    """Right ones of those judged; tokens and seconds of all."""

    texts: tuple[str, ...]
    passed: int
    judged: int
    tokens: int
    seconds: float

    @property
    def share(self) -> float:
        return self.passed / self.judged if self.judged else 1.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


def read_prompts(path: Path) -> list[Prompt]:
    """FormatError names the file and the line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"--prompts {path} cannot be read as UTF-8 text: {safe(str(error), 120)}") from error
    found = [_prompt(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise FormatError(f"--prompts {path} holds no prompt")
    return found


def _prompt(path: Path, number: int, line: str) -> Prompt:
    if path.suffix != ".jsonl":
        return Prompt(({"role": "user", "content": line.strip()},))
    try:
        value = json.loads(line)
        return _from_object(value)
    except (ValueError, TypeError, KeyError, re.error) as error:
        raise FormatError(
            f'{path.name} line {number} is no prompt ({safe(str(error), 80)}): {{"prompt": TEXT, "expect": TEXT}}'
        ) from error


def _from_object(value: dict[str, Any]) -> Prompt:
    messages = value["messages"] if "messages" in value else [{"role": "user", "content": value["prompt"]}]
    expect = value.get("expect", [])
    expect = [expect] if isinstance(expect, str) else expect
    regex = value.get("regex", "")
    re.compile(regex)
    if not all(isinstance(m, dict) and "role" in m for m in messages) or not all(isinstance(e, str) for e in expect):
        raise TypeError("messages have a role, expect is text")
    return Prompt(tuple(messages), tuple(expect), regex)


async def answer_all(engine: TextEngine, prompts: Sequence[Prompt], max_new_tokens: int) -> Answers:
    """Greedy answers, CONCURRENCY at once. RequestError where one fails."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(number: int, prompt: Prompt) -> tuple[str, int]:
        async with gate:
            return await _answer(engine, prompt, max_new_tokens, f"prompt-{number}")

    started = time.perf_counter()
    answers = await asyncio.gather(*(one(n, prompt) for n, prompt in enumerate(prompts)))
    seconds = time.perf_counter() - started
    texts = tuple(text for text, _ in answers)
    judged = [(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if prompt.judged]
    passed = sum(prompt.passes(text) for prompt, text in judged)
    return Answers(texts, passed, len(judged), sum(count for _, count in answers), seconds)


async def _answer(engine: TextEngine, prompt: Prompt, max_new_tokens: int, request_id: str) -> tuple[str, int]:
    request = TextRequest(
        request_id, prompt.ids or prompt.messages, chat=not prompt.ids, sampling=Sampling(temperature=0.0),
        max_new_tokens=max_new_tokens,
    )  # fmt: skip
    text, tokens = "", 0
    async for chunk in engine.generate(request):
        if chunk.error is not None:
            raise RequestError(f"a prompt failed: {chunk.error}", 500)
        text += chunk.text
        tokens = max(tokens, chunk.usage.completion_tokens)
    return text, tokens
