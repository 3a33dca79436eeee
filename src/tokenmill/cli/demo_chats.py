"""Conversations that the demo plays: what is asked, what a right answer holds, and how fast answers came."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenmill.types import Finish, Message, Sampling, TextRequest

if TYPE_CHECKING:
    from tokenmill.api.contract import TextEngine

Check = Callable[[str], bool]
MAX_TOKENS = 420


@dataclass(frozen=True, slots=True)
class Turn:
    """A question. `right` judges its answer where that can be done by looking at it."""

    ask: str
    right: Check | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    title: str
    turns: tuple[Turn, ...]


def holds(*words: str) -> Check:
    return lambda answer: all(word in answer for word in words)


SCENES = (
    Scene("Chat in English", (Turn("Hello, who are you?"), Turn("What is 27 + 48?", holds("75")))),
    Scene("Chat in Chinese", (Turn("你好，请介绍一下你自己。"), Turn("52 - 17 等于几？", holds("35")))),
    Scene("A story", (Turn("请讲一个关于狐狸和西瓜的小故事", holds("狐狸", "西瓜")),)),
    Scene(
        "Recall over three turns",
        (Turn("My name is Alice."), Turn("What is 12 + 30?", holds("42")), Turn("What is my name?", holds("Alice"))),
    ),
)


@dataclass(slots=True)
class Totals:
    """What all answers amount to. Times in seconds, from asking to the first and to the last token."""

    tokens: int = 0
    decode_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    ended: int = 0
    judged: int = 0
    right: int = 0

    def __str__(self) -> str:
        first = sorted(self.first_s)
        rate = (self.tokens - len(first)) / self.decode_s if self.decode_s else 0.0
        return (
            f"{self.tokens} tokens in {len(first)} answers, {rate:.0f} tokens/s, "
            f"TTFT median {first[len(first) // 2] * 1e3:.0f} ms\n"
            f"{self.right} of {self.judged} answers that can be judged are right, "
            f"{self.ended} of {len(first)} ended by themselves"
        )


async def answer(engine: TextEngine, messages: list[Message], totals: Totals) -> str:
    """Streams one greedy answer to stdout and gives its text."""
    from tokenmill.serve.ui.clean import Cleaner

    request = TextRequest(
        f"demo-{len(totals.first_s)}", tuple(messages), sampling=Sampling(temperature=0.0), max_new_tokens=MAX_TOKENS
    )
    cleaner, said = Cleaner(), ""
    started = first = time.perf_counter()
    async for chunk in engine.generate(request):
        first = first if said or not chunk.text else time.perf_counter()
        said += chunk.text
        print(cleaner.feed(chunk.text), end="", flush=True)
        if chunk.finish:
            totals.tokens += chunk.usage.completion_tokens
            totals.ended += chunk.finish is Finish.STOP
    totals.first_s.append(first - started)
    totals.decode_s += time.perf_counter() - first
    print()
    return said


async def play(engine: TextEngine, scene: Scene, totals: Totals) -> None:
    """Asks every turn of a scene, with all earlier turns before it."""
    messages: list[Message] = []
    for turn in scene.turns:
        messages.append({"role": "user", "content": turn.ask})
        print(f"user: {turn.ask}\n{engine.name}: ", end="", flush=True)
        said = await answer(engine, messages, totals)
        messages.append({"role": "assistant", "content": said})
        if turn.right is not None:
            totals.judged += 1
            totals.right += turn.right(said)
