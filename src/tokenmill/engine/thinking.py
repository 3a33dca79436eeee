"""Reasoning at an answer's start under a budget: a matcher around the answer's own grammar, if it has one.

Free while the model reasons, until the budget is spent: then its closing token is the only one that may come. A grammar
that waits sees nothing before that token, and its answer cannot end before it either; another sees every token.
"""

from __future__ import annotations

from tokenmill.engine.sequence import Matcher
from tokenmill.types import Request, Thinking


class ThinkingMatcher:
    """`inner`: the answer's grammar; None: what follows reasoning is free."""

    def __init__(self, thinking: Thinking, vocab_size: int, inner: Matcher | None, stop_ids: tuple[int, ...]) -> None:
        self._thinking = thinking
        self._inner = inner
        self._waits = inner is not None and thinking.inside and thinking.grammar_waits
        self._anything = mask_of(vocab_size, ())
        self._closing = mask_of(vocab_size, (thinking.close_id,), only=True)
        self._thought = mask_of(vocab_size, stop_ids) if self._waits else self._anything
        self._drawn = 0
        # The opening tag is not counted; with the closing one drawn, `_closed` is how many tokens there were.
        self._opened = 0
        self._closed: int | None = None

    def mask(self) -> bytes:
        if self._spent:
            return self._closing
        if self._thinks and (self._waits or self._inner is None):
            return self._thought
        return self._anything if self._inner is None else self._inner.mask()

    def accept(self, token: int) -> bool:
        if self._spent and token != self._thinking.close_id:
            return False
        seen = self._inner is not None and not (self._waits and self._thinks)
        self._drawn += 1
        if self._closed is None:
            self._follow(token)
        return self._inner.accept(token) if self._inner is not None and seen else True

    def rollback(self, count: int) -> None:
        if self._inner is not None:
            before = self._drawn if self._closed is None else self._closed
            self._inner.rollback(min(count, self._drawn - before) if self._waits else count)
        self._drawn -= count
        if self._drawn == 0 or (self._closed is not None and self._closed > self._drawn):
            self._closed = None
        if self._drawn == 0:
            self._opened = 0

    @property
    def _thinks(self) -> bool:
        """Whether the next token is reasoning. An answer that starts outside may open it with its first token."""
        return self._closed is None and (self._thinking.inside or self._drawn > 0)

    @property
    def _spent(self) -> bool:
        budget = self._thinking.budget
        return self._thinks and budget is not None and self._drawn - self._opened >= budget

    def _follow(self, token: int) -> None:
        first = self._drawn == 1
        if first and token == self._thinking.open_id:
            self._opened = 1
        elif token == self._thinking.close_id:
            self._closed = self._drawn
        elif first and not self._thinking.inside:
            self._closed = 0


def around(request: Request, vocab_size: int, inner: Matcher | None) -> Matcher | None:
    """What a request's tokens must meet: its grammar, its reasoning's budget, both or nothing."""
    if request.thinking is None or not request.stop.max_new_tokens:
        return inner
    return ThinkingMatcher(request.thinking, vocab_size, inner, request.stop.token_ids)


def mask_of(vocab_size: int, ids: tuple[int, ...], only: bool = False) -> bytes:
    """V bits, LSB first: all but `ids`, or `only` these."""
    bits = bytearray(-(-vocab_size // 8)) if only else bytearray(b"\xff" * -(-vocab_size // 8))
    for token in ids:
        if token < vocab_size:
            bits[token >> 3] ^= 1 << (token & 7)
    return bytes(bits)
