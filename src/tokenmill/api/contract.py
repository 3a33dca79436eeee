"""What every face (HTTP, pipeline, terminal) sees of a served model, in text. Built by `api/build.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from tokenmill.engine.contract import Engine, Stats
from tokenmill.types import Chunk, Message, TextRequest


@dataclass(frozen=True, slots=True)
class TextLimits:
    """Bounds a face checks before it tokenizes: tokens of a sequence, ids in [0, vocab_size), images or not."""

    max_model_tokens: int
    vocab_size: int
    takes_images: bool = False


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What generation_config.json says where a request says nothing (None: it says nothing either)."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


class TextCodec(Protocol):
    """Text to ids and back, off the event loop. Raises RequestError on text that cannot be encoded or rendered."""

    async def encode(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]: ...

    async def decode(self, ids: tuple[int, ...], skip_special_tokens: bool = True) -> str: ...

    async def prompt_ids(self, request: TextRequest, tools: tuple[Message, ...]) -> tuple[int, ...]:
        """The ids a request's prompt stands for, as `generate` will make them."""
        ...

    async def render(
        self, messages: tuple[Message, ...], tools: tuple[Message, ...] = (), options: dict[str, Any] | None = None
    ) -> str:
        """The chat template's text for a conversation, ready to be continued by the model."""
        ...


class TextEngine(Protocol):
    """A served model. `name` is the id under which it is served; `engine` takes token ids (benchmarks, evaluation)."""

    name: str
    engine: Engine
    limits: TextLimits
    defaults: SamplingDefaults
    codec: TextCodec

    def generate(self, request: TextRequest) -> AsyncIterator[Chunk]:
        """Chunks until one has `finish`. Closing the iterator early aborts. Raises RequestError where refused."""
        ...

    def abort(self, request_id: str) -> None: ...

    async def stats(self) -> Stats: ...

    async def sleep(self, level: int = 1) -> None:
        """As `Engine.sleep`: what runs ends with ABORT, memory goes back, requests are refused until all is awake."""
        ...

    async def wakeup(self, tags: tuple[str, ...] = ()) -> None: ...

    async def close(self) -> None: ...
