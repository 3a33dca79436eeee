"""Plain data that every room may hold: requests, sampling, stops, outputs. Standard library only.

All records are frozen and picklable. Token ids are ints in [0, vocab). Text never enters the engine: a `Request` is
token ids in, a `StepOutput` is token ids out; `TextRequest` and `Chunk` are their counterparts above `api/session.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag, StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one token is drawn. Defaults draw from the model's own distribution.

    temperature 0 is greedy; top_k 0 and top_p 1 mean no limit. Order: bias and bad words, penalties (over prompt and
    output for repetition, output only for presence and frequency), temperature, top-k, top-p, min-p.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_token_ids: tuple[int, ...] = ()
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def needs_history(self) -> bool:
        """True where the draw depends on earlier tokens, which the runner must then be told."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True)
class Stop:
    """When the engine ends a request by itself. Stop strings are the caller's (api/session.py).

    `token_ids` are drawn, reported and end the request; they may not be drawn before `min_new_tokens`.
    max_new_tokens 0 means: run the prompt only (scoring, pooling).
    """

    max_new_tokens: int = 512
    min_new_tokens: int = 0
    token_ids: tuple[int, ...] = ()


class Want(IntFlag):
    """What is wanted from a row beside running it."""

    NONE = 0
    TOKEN = 1
    LOGPROBS = 2
    PROMPT_LOGPROBS = 4
    LOGITS = 8
    HIDDEN = 16
    POOL = 32


class Finish(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class MediaRef:
    """An image a prompt refers to: its content digest and the span of placeholder tokens it fills.

    `source`: the file with its pixels, which lasts as long as the request. `grid`: rows and columns of its vectors, for
    models that turn each by its place in the picture; () for others.
    """

    digest: str
    offset: int
    num_tokens: int
    source: str = ""
    grid: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A constraint on the answer. kind: json_schema, json_object, regex, choice, ebnf, structural_tag, tool_calls."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """Reasoning at an answer's start, in tokens: `close_id` ends it, `open_id` (-1: none) may begin it.

    `inside`: the answer starts within it. `budget`: after so many tokens it must close (None: when it likes).
    `grammar_waits`: where it starts within, the request's grammar holds for what follows only.
    """

    close_id: int
    open_id: int = -1
    inside: bool = True
    budget: int | None = None
    grammar_waits: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One wish of a user, in token ids.

    `top_logprobs` 0..20 alternatives beside the drawn token where LOGPROBS is wanted; `timeout_s` counts from
    submission; `cache_salt` keeps prefix hits within those who share it; lower `priority` runs first.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    stop: Stop = Stop()
    want: Want = Want.TOKEN
    top_logprobs: int = 0
    grammar: GrammarSpec | None = None
    media: tuple[MediaRef, ...] = ()
    adapter: str = ""
    cache_salt: str = ""
    priority: int = 0
    timeout_s: float | None = None
    thinking: Thinking | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """`cached_tokens` are part of the prompt's; `reasoning_tokens` part of the completion's, known above the engine."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probability of one token and of the best others: raw distribution, before temperature and filters."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RawArray:
    """An array that travels: little-endian bytes in C order."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one request got from the engine since the last output. `usage` is cumulative.

    The last output has `finish` set; a stop token that ended the request is in `token_ids` and named in
    `stop_token_id`. `error` is one line for a user and set only where finish is ERROR. `prompt_logprobs[i]` belongs to
    prompt token i, None for the first; it comes whole, with the first output. `arrays`: logits, hidden, pool by name.
    """

    token_ids: tuple[int, ...] = ()
    finish: Finish | None = None
    stop_token_id: int | None = None
    error: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    arrays: dict[str, RawArray] = field(default_factory=dict)
    usage: Usage = Usage()


Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One wish of a user, in text, as the faces (HTTP, pipeline, terminal) hand it to `api/session.py`.

    `prompt` is a string (no template), token ids, or a list of chat messages (`chat=True` templates a string as one
    user message). `tool_choice` is auto, none, required (calls and nothing else) or the name of the one tool to call.
    max_new_tokens None means up to the context's end. `stop_strings` of any length end the answer and are cut from it
    unless `include_stop`. `stop_logprob`: a stop token that is not shown has a log-probability all the same.
    `template_options` go to the chat template (allow-listed by the face). `thinking_budget`: tokens of reasoning after
    which it is ended; refused where that cannot be kept.
    """

    id: str
    prompt: str | tuple[int, ...] | tuple[Message, ...]
    chat: bool = True
    sampling: Sampling = Sampling()
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    stop_logprob: bool = False
    want: Want = Want.TOKEN
    tools: tuple[Message, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    template_options: dict[str, Any] = field(default_factory=dict)
    grammar: GrammarSpec | None = None
    cache_salt: str = ""
    adapter: str = ""
    priority: int = 0
    timeout_s: float | None = None
    thinking_budget: int | None = None


@dataclass(frozen=True, slots=True)
class TextLogprob:
    """A token's text, its raw bytes (a token may be half a character) and its log-probability."""

    token: str
    token_bytes: bytes
    token_id: int
    logprob: float
    top: tuple[TextLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: `id` and `name` come once, `arguments` is a piece of a JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer in text. Never half a character; text that may begin a stop string is held back.

    The first chunk of a request carries `prompt_ids` (what the template and tokenizer made) and, where wanted, the
    prompt's log-probabilities; the last carries `finish`, and `stop_reason`: the stop string or token id that hit.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: Finish | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TextLogprob, ...] = ()
    prompt_ids: tuple[int, ...] | None = None
    prompt_logprobs: tuple[TextLogprob | None, ...] | None = None
    arrays: dict[str, RawArray] = field(default_factory=dict)
    usage: Usage = Usage()
