"""What a peer is, and what travels to it and back: JSON lines, so that a peer's process shares no version with ours.

To the child, one line: a `Job`. From it, lines with an `event`:

    started                     the interpreter is up and has read the job
    loaded   version            the peer's package is imported
    ready    phases             the model is loaded and warm; seconds of parts, where the engine tells them
    run      case, streams, timelines     one workload
    failed   error, kind        in place of all that would follow; kind "config" is told as the user's error
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tokenmill.bench.timeline import Timeline
from tokenmill.bench.workload import Item, Workload

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What every engine is given alike. `max_model_tokens` None: the engine's own choice."""

    model: str
    dtype: str = "auto"
    kv: str = "auto"
    memory_frac: float = 0.8
    max_rows: int = 256
    max_model_tokens: int | None = None
    tp: int = 1
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Job:
    """A child's whole work."""

    engine: str
    settings: Settings
    workloads: tuple[Workload, ...]
    warm_up: tuple[Item, ...] = ()

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> Job:
        raw = json.loads(text)
        made = tuple(Workload(**{**w, "items": _items(w["items"])}) for w in raw["workloads"])
        return Job(raw["engine"], Settings(**raw["settings"]), made, _items(raw["warm_up"]))


def _items(raw: list[dict[str, Any]]) -> tuple[Item, ...]:
    return tuple(Item(tuple(item["prompt_ids"]), item["new_tokens"]) for item in raw)


def pack_line(line: Timeline) -> list[Any]:
    return [line.prompt_tokens, line.sent_s, line.messages, line.ended_s, line.error]


def unpack_line(raw: list[Any]) -> Timeline:
    prompt_tokens, sent_s, messages, ended_s, error = raw
    return Timeline(prompt_tokens, sent_s, [(when, tokens) for when, tokens in messages], ended_s, error)


class Peer(Protocol):
    """One engine. `streams`: its messages come as tokens do, so that TTFT and ITL mean something."""

    streams: bool

    def load(self) -> str:
        """Imports the package; its version."""

    def start(self, settings: Settings) -> dict[str, float]:
        """Opens the model; seconds of its phases by name. Raises ConfigError where a setting has no counterpart."""

    def run(self, workload: Workload) -> list[Timeline]:
        """All requests, stop tokens ignored, to their full length."""

    def close(self) -> None: ...
