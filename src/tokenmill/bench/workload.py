"""Workloads: prompts of token ids with fixed output lengths, the same numbers for every engine (docs/measurements.md).

`static` and `trace` draw from numpy's default generator in a fixed order, so that a peer's script that does the same
gets the same ids. Models with a smaller vocabulary get ids below theirs, and then differ from a peer's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tokenmill.errors import ConfigError

VOCAB_SIZE = 92_000
FIRST_ID = 300
# The usual filters of chat datasets: prompt at most 1,024 tokens, both together at most 2,048.
MAX_PROMPT_TOKENS, MAX_TOTAL_TOKENS, MIN_TOKENS = 1024, 2048, 4


@dataclass(frozen=True, slots=True)
class Item:
    """One request: its prompt, and exactly how many tokens to draw (stop tokens are ignored)."""

    prompt_ids: tuple[int, ...]
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are sent together. `temperature` 0 is greedy."""

    name: str
    items: tuple[Item, ...]
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def prompt_tokens(self) -> int:
        return sum(len(item.prompt_ids) for item in self.items)

    @property
    def new_tokens(self) -> int:
        return sum(item.new_tokens for item in self.items)


def _ids(random: np.random.Generator, count: int, vocab_size: int) -> tuple[int, ...]:
    first = min(FIRST_ID, vocab_size // 2)
    return tuple(random.integers(first, min(vocab_size, VOCAB_SIZE), count).tolist())


def static(batch: int, prompt_tokens: int, new_tokens: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> list[Item]:
    """`batch` requests of one length."""
    random = np.random.default_rng(seed)
    return [Item(_ids(random, prompt_tokens, vocab_size), new_tokens) for _ in range(batch)]


def trace(count: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> list[Item]:
    """`count` requests with the lengths of chat: log-normal, clipped as above."""
    random = np.random.default_rng(seed)
    items: list[Item] = []
    while len(items) < count:
        prompt, new = int(random.lognormal(4.6, 1.25)), int(random.lognormal(4.9, 1.0))
        if min(prompt, new) >= MIN_TOKENS and prompt <= MAX_PROMPT_TOKENS and prompt + new <= MAX_TOTAL_TOKENS:
            items.append(Item(_ids(random, prompt, vocab_size), new))
    return items


def fits(items: list[Item], max_model_tokens: int) -> tuple[Item, ...]:
    """The items that a model with this context can run."""
    return tuple(item for item in items if len(item.prompt_ids) + item.new_tokens <= max_model_tokens)


def warm_items(vocab_size: int) -> tuple[Item, ...]:
    """A few short requests that go before any workload, the same for every engine."""
    return tuple(Item((i % vocab_size,) * 32, 16) for i in range(8))


FORMS = "static:BATCHxPROMPTxNEW, trace:COUNT, sampled:COUNT (as trace, at temperature 0.8), prefill:BATCHxPROMPT"
STANDARD = (
    "static:1x128x512", "static:16x128x512", "static:64x128x512", "static:256x128x512",
    "trace:1000", "sampled:1000", "prefill:64x1024",
)  # fmt: skip


def parse(text: str, vocab_size: int = VOCAB_SIZE, max_model_tokens: int | None = None) -> list[Workload]:
    """The workloads that a text such as `static:16x128x512` names; `standard` names the seven of the protocol."""
    if text == "standard":
        return [w for name in STANDARD for w in parse(name, vocab_size, max_model_tokens)]
    found = re.fullmatch(r"(static|trace|sampled|prefill):(\d{1,6}(?:x\d{1,6})*)", text)
    numbers = [int(n) for n in found[2].split("x")] if found else []
    wanted = {"static": 3, "trace": 1, "sampled": 1, "prefill": 2}
    if not found or len(numbers) != wanted[found[1]] or min(numbers) < 1:
        raise ConfigError(f"{text!r} is no workload; write {FORMS}, or standard")
    kind = found[1]
    if kind == "static":
        items = static(numbers[0], numbers[1], numbers[2], vocab_size=vocab_size)
    elif kind == "prefill":
        items = static(numbers[0], numbers[1], new_tokens=1, vocab_size=vocab_size)
    else:
        items = trace(numbers[0], seed=int(kind == "sampled"), vocab_size=vocab_size)
    kept = fits(items, max_model_tokens) if max_model_tokens else tuple(items)
    if not kept:
        raise ConfigError(f"no request of {text} fits a context of {max_model_tokens} tokens; take shorter ones")
    cut = f" ({len(kept)} of {len(items)} fit)" if len(kept) < len(items) else ""
    drawn = {"temperature": 0.8, "top_p": 0.8} if kind == "sampled" else {}
    return [Workload(text + cut, kept, **drawn)]
