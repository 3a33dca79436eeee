"""What a pipeline gives back, with LMDeploy's field names, and a conversation's memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenmill.api.prompts import with_images
from tokenmill.types import Chunk, Message, RawArray, TextLogprob

if TYPE_CHECKING:
    import torch

_ids = itertools.count()


@dataclass
class Response:
    """An answer, or a piece of one. `logprobs` holds {id: log-probability} per token; counts are cumulative."""

    text: str = ""
    generate_token_len: int = 0
    input_token_len: int = 0
    finish_reason: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    index: int = 0
    routed_experts: Any = None
    cached_tokens: int = 0
    error_code: str | None = None
    error_message: str | None = None

    def extend(self, other: Response) -> Response:
        """Appends a later piece of the same answer to this one."""
        self.text += other.text
        self.token_ids = self.token_ids + other.token_ids
        if other.logprobs:
            self.logprobs = (self.logprobs or []) + other.logprobs
        for name in ("generate_token_len", "input_token_len", "cached_tokens"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for name in ("finish_reason", "error_code", "error_message"):
            if getattr(other, name) is not None:
                setattr(self, name, getattr(other, name))
        for name in ("logits", "last_hidden_state"):
            setattr(self, name, _joined(getattr(self, name), getattr(other, name)))
        return self

    def __str__(self) -> str:
        lines = [
            f"text:\n{self.text}",
            f"input_token_len={self.input_token_len}, generate_token_len={self.generate_token_len}, "
            f"finish_reason={self.finish_reason!r}",
        ]
        if self.error_message is not None:
            lines.append(f"error: {self.error_message}")
        return "\n".join(lines)


def response_of(chunk: Chunk, index: int) -> Response:
    usage = chunk.usage
    return Response(
        text=chunk.reasoning + chunk.text,
        generate_token_len=usage.completion_tokens,
        input_token_len=usage.prompt_tokens,
        finish_reason=None if chunk.finish is None else chunk.finish.value,
        token_ids=list(chunk.token_ids),
        logprobs=[_logprobs(entry) for entry in chunk.logprobs] or None,
        logits=_tensor(chunk.arrays.get("logits")),
        last_hidden_state=_tensor(chunk.arrays.get("hidden")),
        index=index,
        cached_tokens=usage.cached_tokens,
        error_code=None if chunk.error is None else "engine_error",
        error_message=chunk.error,
    )


def _logprobs(entry: TextLogprob) -> dict[int, float]:
    return {**{other.token_id: other.logprob for other in entry.top}, entry.token_id: entry.logprob}


def _tensor(array: RawArray | None) -> torch.Tensor | None:
    if array is None:
        return None
    import numpy as np
    import torch

    values = np.frombuffer(array.data, np.dtype(array.dtype).newbyteorder("<")).reshape(array.shape)
    return torch.from_numpy(values.copy())


def _joined(mine: torch.Tensor | None, more: torch.Tensor | None) -> torch.Tensor | None:
    if mine is None or more is None:
        return more if mine is None else mine
    import torch

    return torch.cat([mine, more])


class Session:
    """A conversation: what was said, and the last answer."""

    def __init__(self) -> None:
        self.id = next(_ids)
        self.history: list[tuple[Any, str]] = []
        self.response: Response | None = None
        self.generator: Iterator[Response] | None = None

    @property
    def _id(self) -> int:
        return self.id

    @property
    def _step(self) -> int:
        """Tokens of the conversation so far, as old programs read it."""
        return 0 if self.response is None else self.response.input_token_len + self.response.generate_token_len

    def messages(self, prompt: Any) -> list[Message]:
        """The whole conversation with `prompt` (a text or messages) at its end."""
        said: list[Message] = []
        for asked, answer in self.history:
            said += [*_as_messages(asked), {"role": "assistant", "content": answer}]
        return [*said, *_as_messages(prompt)]

    def remember(self, prompt: Any, response: Response) -> None:
        self.response = response
        self.history.append((prompt, response.text))

    def close(self) -> None:
        """Forgets everything; an answer under way is aborted."""
        close = getattr(self.generator, "close", None)
        if close is not None:
            close()
        self.history, self.response, self.generator = [], None, None


def _as_messages(prompt: Any) -> list[Message]:
    if isinstance(prompt, tuple):
        return [with_images(prompt)]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
