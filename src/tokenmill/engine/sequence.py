"""One request inside the engine: what it asked for, the tokens it has, and what it has been promised.

Lives as long as the request. While it has a seat, its tokens and counters are in `SlotState`, by slot; `tokens` here is
what it had when it last stood up. Arrays over the whole prompt (log-probabilities, logits, hidden states) are gathered
over chunks and leave once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tokenmill.engine.blocks import extend_keys
from tokenmill.engine.contract import I32, RowExtras
from tokenmill.types import Request, Want

# Plain ints, as `Sequence.want` is one: combining members of a Flag costs a microsecond each time.
TOKEN = int(Want.TOKEN)
LOGPROBS = int(Want.LOGPROBS)
PROMPT_LOGPROBS = int(Want.PROMPT_LOGPROBS)
OVER_PROMPT = int(Want.PROMPT_LOGPROBS | Want.LOGITS | Want.HIDDEN)
LAST_CHUNK = int(Want.TOKEN | Want.LOGPROBS | Want.POOL)
STEADY = TOKEN | LOGPROBS
PROMPT_ONLY = int(Want.PROMPT_LOGPROBS | Want.POOL)


class Matcher(Protocol):
    """A grammar's state along one answer. Raises ValueError where the grammar itself fails at run time."""

    def mask(self) -> bytes:
        """Allowed next tokens: V bits, LSB first, whole bytes."""
        ...

    def accept(self, token: int) -> bool:
        """Moves on by one token; False where the grammar does not allow it."""
        ...

    def rollback(self, count: int) -> None: ...


@dataclass(slots=True, eq=False)
class Sequence:
    """`rank` (priority, arrival) orders everything: lower runs first, the highest is preempted first.

    limit_tokens: the most tokens it may ever hold, prompt and output. `passed`: the prompt's arrays have left, so a
    second run over it (after preemption) need not make them and may take prefix hits.
    """

    handle: int
    request: Request
    rank: tuple[int, int]
    tokens: I32
    prompt_tokens: int
    limit_tokens: int
    seed: int
    rope_base: float
    root: bytes
    deadline: float | None = None
    slot: int = -1
    passed: bool = False
    started: bool = False
    ended: bool = False
    cached_tokens: int = 0
    waits_for_grammar: bool = False
    matcher: Matcher | None = None
    tried_at: int = -1
    want: int = 0
    keys: dict[int, list[bytes]] = field(default_factory=dict)
    gathered: dict[str, list[NDArray[np.generic]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.want = int(self.request.want)

    @property
    def draws(self) -> bool:
        """False for requests that run the prompt only (scoring, pooling)."""
        return self.request.stop.max_new_tokens > 0

    @property
    def over_prompt(self) -> int:
        """What is still owed over every prompt position."""
        return 0 if self.passed else self.want & OVER_PROMPT

    @property
    def steady_want(self) -> int:
        """What a decode row is asked for."""
        return (self.want | TOKEN) & ~PROMPT_ONLY

    def chunk_want(self, is_last: bool) -> int:
        """What a chunk is asked for: the prompt's arrays from each, the token and the pool from the last."""
        if not is_last:
            return self.over_prompt
        want = self.want & (LAST_CHUNK if not self.passed else LOGPROBS)
        if self.draws:
            want |= TOKEN | (self.steady_want & ~STEADY)
        else:
            want &= ~STEADY
        return want | self.over_prompt

    def keys_for(self, block_tokens: int, tokens: I32) -> list[bytes]:
        """The chain of all full blocks of `tokens` (this sequence's tokens, which only ever grow)."""
        keys = self.keys.setdefault(block_tokens, [])
        extend_keys(keys, self.root, tokens, block_tokens, self.request.media)
        return keys

    def gather(self, extras: RowExtras) -> None:
        """Keeps a chunk's arrays until the prompt is through."""
        for name in ("prompt_logprobs", "prompt_top_ids", "prompt_top_logprobs", "logits", "hidden"):
            part = getattr(extras, name)
            if part is not None:
                self.gathered.setdefault(name, []).append(part)
        if extras.pool is not None:
            self.gathered["pool"] = [extras.pool]

    def pour(self) -> dict[str, NDArray[np.generic]]:
        """Everything gathered, joined; gathering starts anew."""
        whole = {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in self.gathered.items()}
        self.gathered = {}
        return whole
