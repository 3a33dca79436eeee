"""What a request must fulfil before it may wait: everything that can be refused is refused here, with numbers.

This is the last gate: a value that a runner cannot take would end the loop, and with it every other request.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod

import numpy as np

from tokenmill.engine.blocks import root_key
from tokenmill.engine.contract import Capacity
from tokenmill.engine.sequence import Sequence
from tokenmill.errors import RequestError
from tokenmill.types import MediaRef, Request, Want

# Every step compares each row with as many stop ids as the row that has most of them.
MOST_STOP_IDS = 256
MOST_TOP_LOGPROBS = 20
NEEDS_LOGITS = Want.LOGPROBS | Want.PROMPT_LOGPROBS | Want.LOGITS
INT32, INT64 = 2**31, 2**63


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
    if not capacity.generates and (stop.max_new_tokens > 0 or request.want & NEEDS_LOGITS):
        raise RequestError("this is a reward model: it scores a prompt (/pooling, get_reward_score), it writes no text")
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
    _check_draws(request, capacity.vocab_size)
    if request.media:
        _check_media(request, capacity)


def _check_media(request: Request, capacity: Capacity) -> None:
    """Images lie in the prompt one behind the other, whole, and each fits into the encoder's cache."""
    if capacity.encoder_cache_bytes == 0:
        raise RequestError("this model takes no images: send text only", param="messages")
    end, most = 0, capacity.image_tiles * capacity.tile_tokens
    for image in request.media:
        if image.num_tokens > most:
            fix = "" if capacity.grids else ", or limit its tiles with max_dynamic_patch"
            raise RequestError(
                f"an image takes {image.num_tokens} tokens and the encoder's cache holds {most}: "
                f"send a smaller one{fix}", param="messages",
            )
        if not image.digest or not _is_whole(image, capacity) or image.offset < end:
            shape = "rows and columns" if capacity.grids else "whole tiles"
            raise RequestError(f"images must lie one behind the other, in {shape}", param="messages")
        end = image.offset + image.num_tokens
    if end > len(request.prompt_ids):
        raise RequestError("an image lies outside the prompt", param="messages")


def _is_whole(image: MediaRef, capacity: Capacity) -> bool:
    if capacity.ahead:
        return not image.grid and image.num_tokens == capacity.tile_tokens
    if capacity.grids:
        return len(image.grid) == 2 and min(image.grid) > 0 and prod(image.grid) == image.num_tokens
    return not image.grid and image.num_tokens > 0 and image.num_tokens % capacity.tile_tokens == 0


def _check_draws(request: Request, vocab_size: int) -> None:
    """How tokens are drawn and where that stops."""
    sampling, stop_ids = request.sampling, request.stop.token_ids
    if len(stop_ids) > MOST_STOP_IDS:
        raise RequestError(f"{len(stop_ids)} stop token ids are given; the limit is {MOST_STOP_IDS}", param="stop")
    if stop_ids and not 0 <= min(stop_ids) <= max(stop_ids) < INT32:
        # A tokenizer may know end tokens that the model cannot draw: those are harmless.
        raise RequestError(f"stop token ids must lie in [0, {INT32})", param="stop")
    if request.thinking is not None and not 0 <= request.thinking.close_id < vocab_size:
        raise RequestError(f"the token that ends reasoning must lie in [0, {vocab_size})", param="thinking")
    named = [*sampling.bad_token_ids, *(token for token, _ in sampling.logit_bias)]
    if named and not 0 <= min(named) <= max(named) < vocab_size:
        raise RequestError(f"bad and biased token ids must lie in [0, {vocab_size})", param="logit_bias")
    numbers = (
        sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty, sampling.presence_penalty,
        sampling.frequency_penalty, *(value for _, value in sampling.logit_bias),
    )  # fmt: skip
    if not all(isfinite(number) for number in numbers):
        raise RequestError("sampling parameters must be finite numbers", param="temperature")
    if sampling.temperature < 0 or sampling.repetition_penalty <= 0 or sampling.top_k < 0:
        raise RequestError("temperature and top_k must be at least 0, repetition_penalty above 0", param="temperature")
    if sampling.top_k >= INT32:
        raise RequestError(f"top_k is {sampling.top_k}; it must be below {INT32}", param="top_k")
    if not -INT64 <= (sampling.seed or 0) < INT64:
        raise RequestError(f"the seed is {sampling.seed}; it must fit into 64 bits", param="seed")
    if not 0 <= request.top_logprobs <= MOST_TOP_LOGPROBS:
        raise RequestError(
            f"top_logprobs is {request.top_logprobs}; it must lie in [0, {MOST_TOP_LOGPROBS}]", param="top_logprobs"
        )


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
