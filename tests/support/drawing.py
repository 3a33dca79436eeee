"""Draws answers under a grammar's masks, with a vocabulary of bytes."""

from __future__ import annotations

from random import Random

from tokenmill.grammar.compiler import Matcher

SIZE = 300  # more rows than the byte tokenizer has tokens, and no multiple of eight


def allowed(matcher: Matcher) -> list[int]:
    mask = matcher.mask()
    assert len(mask) == (SIZE + 7) // 8
    return [token for token in range(SIZE) if mask[token >> 3] >> (token & 7) & 1]


def prefers(rng: Random, tokens: list[int], spent: int) -> int:
    """A draw: anything allowed at first, then what ends things, since uniform bytes never close a string."""
    closing = [token for token in tokens if token >= 256 or chr(token) in '"}]0123456789,:trufalsn']
    ending = [token for token in tokens if token >= 256 or chr(token) in '"}]']
    if spent > 150 and ending:
        return rng.choice(ending)
    return rng.choice(closing) if closing and (spent > 60 or rng.random() < 0.7) else rng.choice(tokens)


def sample(matcher: Matcher, rng: Random, most: int = 1500) -> str | None:
    """A random answer; None where it did not end in time."""
    drawn: list[int] = []
    while len(drawn) < most:
        tokens = allowed(matcher)
        assert tokens, "nothing is allowed"
        token = prefers(rng, tokens, len(drawn))
        if len(drawn) > 3 and rng.random() < 0.1:
            _back_and_forth(matcher, drawn, tokens)
        assert matcher.accept(token), "a token the mask allows is refused"
        if token >= 256:
            return bytes(drawn).decode()
        drawn.append(token)
    return None


def _back_and_forth(matcher: Matcher, drawn: list[int], tokens: list[int]) -> None:
    """Taking tokens back and giving them again changes nothing."""
    matcher.rollback(3)
    assert all(matcher.accept(token) for token in drawn[-3:])
    assert allowed(matcher) == tokens
