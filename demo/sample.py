"""A training conversation, how it is rendered to InternLM2 chat text, and the held-out rule.

Contract: a `Sample` is a list of messages (`role`, `content`, optional `name`); roles are system, user, assistant and
environment. `segments` gives (text, learn) pairs in prompt order; `learn` marks what the model must produce, the
closing `<|im_end|>` included. Nothing here imports torch or the tokenizer.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

HELD_OUT_SHARE = 10  # one key in ten is never trained on
PLUGIN = "<|plugin|>"


@dataclass(frozen=True, slots=True)
class Sample:
    set: str
    messages: list[dict[str, str]]
    expect: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] = field(default_factory=list)
    plain: bool = False  # a document: no chat text, every token is learnt


Draw = Callable[[Random, bool], Sample]


def listed(text: str) -> list[str]:
    """Words of a text, so that long word lists stay readable."""
    return text.split()


def is_held_out(*parts: object) -> bool:
    """Whether the key made of `parts` belongs to the held-out tenth. Stable over runs, machines and Python versions."""
    return zlib.crc32("|".join(map(str, parts)).encode()) % HELD_OUT_SHARE == 0


def draw_key(rng: Random, held: bool, make: Callable[[Random], tuple[Any, ...]]) -> tuple[Any, ...]:
    """Draw from `make` until the key falls on the asked side of the held-out rule."""
    while True:
        key = make(rng)
        if is_held_out(*key) == held:
            return key


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def plugin_message(tools: list[dict[str, Any]]) -> dict[str, str]:
    """InternLM2's extra system message that lists the functions on one line of JSON."""
    return {"role": "system", "name": PLUGIN, "content": json.dumps(tools, ensure_ascii=False)}


def plugin_call(name: str, parameters: dict[str, Any]) -> str:
    """InternLM2's call text, its end tag included."""
    body = json.dumps({"name": name, "parameters": parameters}, ensure_ascii=False)
    return f"<|action_start|>{PLUGIN}\n{body}<|action_end|>"


def segments(sample: Sample) -> list[tuple[str, bool]]:
    """The sample's text in order, each part with whether the model learns to produce it. The `<s>` is the caller's."""
    if sample.plain:
        return [(sample.messages[0]["content"] + "</s>", True)]
    parts: list[tuple[str, bool]] = []
    for message in sample.messages:
        name = f" name={message['name']}" if "name" in message else ""
        parts.append((f"<|im_start|>{message['role']}{name}\n", False))
        parts.append((message["content"] + "<|im_end|>", message["role"] == "assistant"))
        parts.append(("\n", False))
    return parts
