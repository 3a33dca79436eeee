"""The demo model's held-out sets through a text engine, greedily: how many answers of each set are right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from tokenmill.api.contract import TextEngine
from tokenmill.eval.tasks.demo_sets import GOALS, MAX_ANSWER_TOKENS, DemoItem, check
from tokenmill.types import Finish, Sampling, TextRequest, ToolCallDelta

CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, tool calls as the text they were made of, and whether it stopped by itself."""

    text: str
    ended: bool


@dataclass(slots=True)
class Score:
    """One set. `wrong` keeps the first few failures for a person to read."""

    name: str
    right: int = 0
    total: int = 0
    ended: int = 0
    wrong: list[tuple[DemoItem, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def goal(self) -> float:
        goal: float = GOALS[self.name]
        return goal

    def add(self, item: DemoItem, answer: Answer, keep: int) -> None:
        right = check(item, answer.text, answer.ended)
        self.total += 1
        self.right += right
        self.ended += answer.ended
        if not right and len(self.wrong) < keep:
            self.wrong.append((item, answer.text))


def call_text(deltas: list[ToolCallDelta]) -> str:
    """Tool calls as JSON objects, one a line, as the model writes them."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for delta in deltas:
        names[delta.index] = names.get(delta.index, "") + delta.name
        arguments[delta.index] = arguments.get(delta.index, "") + delta.arguments
    return "\n".join(
        f'{{"name": {json.dumps(names[i], ensure_ascii=False)}, "parameters": {arguments[i] or "{}"}}}' for i in names
    )


async def ask(engine: TextEngine, item: DemoItem, request_id: str) -> Answer:
    request = TextRequest(
        id=request_id,
        prompt=tuple(item.messages),
        sampling=Sampling(temperature=0.0),
        max_new_tokens=MAX_ANSWER_TOKENS,
        tools=tuple(item.tools),
    )
    text: list[str] = []
    calls: list[ToolCallDelta] = []
    finish = None
    async for chunk in engine.generate(request):
        text.append(chunk.text)
        calls += chunk.tool_calls
        finish = chunk.finish or finish
    return Answer("".join(text) + call_text(calls), finish is Finish.STOP)


async def run_demo(
    engine: TextEngine, items: list[DemoItem], progress: Callable[[int], None] = lambda _: None, keep: int = 3
) -> list[Score]:
    """Scores by set, in the order of the items. `progress` is told how many answers there are."""
    gate = asyncio.Semaphore(CONCURRENCY)
    scores: dict[str, Score] = {item.set: Score(item.set) for item in items}
    done = 0

    async def one(number: int, item: DemoItem) -> None:
        nonlocal done
        async with gate:
            answer = await ask(engine, item, f"demo-{number}")
        scores[item.set].add(item, answer, keep)
        done += 1
        progress(done)

    await asyncio.gather(*(one(n, item) for n, item in enumerate(items)))
    return list(scores.values())
