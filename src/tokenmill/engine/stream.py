"""One request as its caller sees it: what the engine sent since the caller last looked, as one StepOutput.

Lives on the caller's event loop. Outputs that come faster than they are read are joined, so a slow reader costs no
memory beyond its own tokens.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from tokenmill.errors import EngineDeadError, RequestError, TokenmillError
from tokenmill.types import Finish, RawArray, Request, StepOutput, TokenLogprobs, Usage

ARRAYS = ("logits", "hidden", "pool")
Extras = dict[str, Any]


class Stream:
    """`put` and `fail` fill it, `ready` waits, `take` empties it."""

    def __init__(self, request: Request, handle: int) -> None:
        self.request = request
        self.handle = handle
        self.finish: Finish | None = None
        self._tokens: list[int] = []
        self._extras: list[Extras] = []
        self._failure: TokenmillError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drawn = 0
        self._cached = 0
        self._last_token = -1

    @property
    def ended(self) -> bool:
        return self.finish is not None or self._failure is not None

    def put(self, tokens: list[int], finish: Finish | None, extras: Extras | None) -> None:
        if self.finish is not None:
            # An engine may still say that it has dropped what it has ended.
            return
        self._tokens += tokens
        self.finish = finish
        if extras:
            if "refused" in extras:
                status, text, param, code = extras["refused"]
                self._failure = RequestError(text, status, param=param, code=code)
            self._extras.append(extras)
        self._wake()

    def fail(self, reason: str) -> None:
        """The engine is gone; what was sent before is still read first."""
        if not self.ended:
            self._failure = EngineDeadError(reason)
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def ready(self, *, whole: bool = False) -> None:
        """Until there is something to take; with `whole`, until the end."""
        while not self.ended and (whole or not (self._tokens or self._extras)):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def take(self) -> StepOutput:
        """Everything since the last call. Raises what ended the request where that was no answer."""
        if self._failure is not None and not self._tokens:
            raise self._failure
        tokens, self._tokens = tuple(self._tokens), []
        extras, self._extras = self._extras, []
        self._drawn += len(tokens)
        self._last_token = tokens[-1] if tokens else self._last_token
        return StepOutput(
            token_ids=tokens,
            finish=self.finish,
            stop_token_id=self._last_token if self.finish is Finish.STOP else None,
            error=self._error(extras),
            logprobs=drawn_logprobs(extras, tokens),
            prompt_logprobs=prompt_logprobs(extras, self.request.prompt_ids),
            arrays=raw_arrays(extras),
            usage=self._usage(extras),
        )

    def _usage(self, extras: list[Extras]) -> Usage:
        self._cached = next((e["cached_tokens"] for e in extras if "cached_tokens" in e), self._cached)
        return Usage(len(self.request.prompt_ids), self._drawn, self._cached)

    def _error(self, extras: list[Extras]) -> str | None:
        if self.finish is not Finish.ERROR:
            return None
        return next((str(e["error"]) for e in extras if "error" in e), "the engine could not finish this request")


def drawn_logprobs(extras: list[Extras], tokens: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
    """Of the drawn tokens, in order; empty where none were wanted."""
    parts = [_token_logprobs(e, "logprobs", "top_ids", "top_logprobs") for e in extras if "logprobs" in e]
    found = [pair for part in parts for pair in part]
    if not found:
        return ()
    return tuple(TokenLogprobs(token, *pair) for token, pair in zip(tokens, found, strict=True))


def prompt_logprobs(extras: list[Extras], prompt: tuple[int, ...]) -> tuple[TokenLogprobs | None, ...] | None:
    """Of the prompt's tokens, whole; None where none were wanted or they have been told."""
    own = next((e for e in extras if "prompt_logprobs" in e), None)
    if own is None:
        return None
    pairs = _token_logprobs(own, "prompt_logprobs", "prompt_top_ids", "prompt_top_logprobs")
    return (None, *(TokenLogprobs(token, *pair) for token, pair in zip(prompt[1:], pairs, strict=True)))


def _token_logprobs(own: Extras, name: str, ids: str, values: str) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    logprobs = own[name].tolist()
    if ids not in own:
        return [(value, ()) for value in logprobs]
    rows = zip(own[ids].tolist(), own[values].tolist(), strict=True)
    tops = [tuple(zip(row_ids, row_values, strict=True)) for row_ids, row_values in rows]
    return list(zip(logprobs, tops, strict=True))


def raw_arrays(extras: list[Extras]) -> dict[str, RawArray]:
    """Logits, hidden states and pooled vectors, several steps joined along positions."""
    found = {}
    for name in ARRAYS:
        parts = [e[name] for e in extras if name in e]
        if parts:
            whole = np.ascontiguousarray(np.concatenate(parts))
            found[name] = RawArray(whole.shape, whole.dtype.name, whole.tobytes())
    return found
