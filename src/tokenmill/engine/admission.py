"""What a request must fulfil before it may wait: everything that can be refused is refused here, with numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenmill.engine.blocks import root_key
from tokenmill.engine.contract import Capacity
from tokenmill.engine.sequence import Sequence
from tokenmill.errors import RequestError
from tokenmill.types import Request

# Every step compares each row with as many stop ids as the row that has most of them.
MOST_STOP_IDS = 256


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the engine adds to a request: its number, its place in line, its seed, and when its time is over."""

    handle: int
    arrival: int
    seed: int
    deadline: float | None


def check(request: Request, capacity: Capacity, cache_tokens: int | None) -> None:
    """Raises RequestError (400) where the request could never run; `cache_tokens` is what the whole cache holds."""
    count, stop = len(request.prompt_ids), request.stop
    if count == 0:
        raise RequestError("the prompt has no tokens; it needs at least 1", param="prompt")
    room = 1 if stop.max_new_tokens > 0 else 0
    if count + room > capacity.max_model_tokens:
        raise RequestError(
            f"the prompt has {count} tokens, the model's context is {capacity.max_model_tokens} tokens with the "
            f"answer: shorten the prompt to {capacity.max_model_tokens - room} tokens",
            param="prompt",
            code="context_length_exceeded",
        )
    if cache_tokens is not None and count + room > cache_tokens:
        raise RequestError(
            f"the prompt has {count} tokens, the KV cache holds {cache_tokens} tokens, the model's context is "
            f"{capacity.max_model_tokens} tokens: shorten the prompt or start with a larger --cache-max-entry-count",
            param="prompt",
            code="context_length_exceeded",
        )
    if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= capacity.vocab_size:
        raise RequestError(f"prompt token ids must lie in [0, {capacity.vocab_size})", param="prompt")
    if stop.max_new_tokens < 0 or stop.min_new_tokens < 0:
        raise RequestError("max_new_tokens and min_new_tokens must be at least 0", param="max_tokens")
    if len(stop.token_ids) > MOST_STOP_IDS:
        raise RequestError(
            f"the request names {len(stop.token_ids)} stop token ids; the limit is {MOST_STOP_IDS}", param="stop"
        )
    if request.media and capacity.encoder_cache_bytes == 0:
        raise RequestError("this model takes no images: send text only", param="messages")


def make_sequence(request: Request, ticket: Ticket, capacity: Capacity, cache_tokens: int | None) -> Sequence:
    """A checked request as a sequence: limit, rope base (from the prompt, for life) and the root of its block keys."""
    tokens = np.asarray(request.prompt_ids, np.int32)
    limit = min(len(tokens) + request.stop.max_new_tokens, capacity.max_model_tokens)
    if cache_tokens is not None:
        limit = min(limit, cache_tokens)
    base = capacity.rope.for_prompt(len(tokens)) if capacity.rope is not None else 0.0
    return Sequence(
        handle=ticket.handle,
        request=request,
        rank=(request.priority, ticket.arrival),
        tokens=tokens,
        prompt_tokens=len(tokens),
        limit_tokens=limit,
        seed=ticket.seed,
        rope_base=base,
        root=root_key(request.adapter, base, capacity.salt, request.cache_salt),
        deadline=ticket.deadline,
        waits_for_grammar=request.grammar is not None and request.stop.max_new_tokens > 0,
    )
