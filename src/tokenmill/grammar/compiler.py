"""Grammars over a model's vocabulary: `Compiler.compile(spec) -> Matcher`, through llguidance.

llguidance's errors are values, so each is looked for after every step: a grammar that does not compile raises
RequestError (400), one that fails while it runs ValueError, which ends its own request. Its fuel limits, set here,
bound the time of a compile and of a mask. Safe to call from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from tokenmill.errors import ConfigError, RequestError
from tokenmill.grammar.spec import grammar_text
from tokenmill.types import GrammarSpec

_MAX_ERROR_CHARS = 300


@dataclass(frozen=True)
class TokenTable:
    """What a grammar must know of a vocabulary.

    token_bytes(id) for ids in [0, size) (empty: never drawn under a grammar); encode(text) the tokenizer's own ids,
    which are preferred where only one text can follow; `special` by text; `end_ids` end an answer and may be drawn
    where the grammar is complete.
    """

    size: int
    token_bytes: Callable[[int], bytes]
    encode: Callable[[str], list[int]]
    special: Mapping[str, int]
    end_ids: tuple[int, ...]


class Compiler:
    """Holds the vocabulary's token tree, which is built once, with the first grammar (a second for 100,000 tokens)."""

    def __init__(self, table: TokenTable) -> None:
        if not table.end_ids:
            raise ConfigError("the tokenizer names no end-of-text token, which a constrained answer needs to end")
        self._table = table
        self._tree: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._limits = LLParserLimits(verbose_errors=False, max_grammar_size=100_000, max_lexer_states=50_000)

    def __call__(self, spec: GrammarSpec) -> Matcher:
        return self.compile(spec)

    def prepare(self) -> None:
        """Builds the token tree now."""
        self._tokens()

    def compile(self, spec: GrammarSpec) -> Matcher:
        """A matcher at the start of an answer. Raises RequestError that says what is wrong with the grammar."""
        text = grammar_text(spec, self._table.special)
        matcher = LLMatcher(self._tokens(), text, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise RequestError(
                f"the {spec.kind} cannot be used: {_line(matcher.get_error())}",
                param="response_format", code="invalid_grammar",
            )
        return Matcher(matcher, frozenset(self._table.end_ids), (self._table.size + 7) // 8)

    def _tokens(self) -> LLTokenizer:
        with self._lock:
            if self._tree is None:
                words = TokenizerWrapper(_Words(self._table))
                self._tree = LLTokenizer(words, self._table.size, list(self._table.end_ids))
            return self._tree


class Matcher:
    """One answer's place in its grammar (engine/sequence.Matcher). Once complete, only end tokens may come."""

    def __init__(self, matcher: LLMatcher, end_ids: frozenset[int], mask_bytes: int) -> None:
        self._matcher = matcher
        self._end_ids = end_ids
        self._mask_bytes = mask_bytes
        # Tokens accepted after the matcher had stopped, of which it knows nothing.
        self._behind = 0

    def mask(self) -> bytes:
        """Allowed next tokens: a bit each, LSB first. Raises ValueError where the grammar ran into a limit."""
        mask = bytes(self._matcher.compute_bitmask()[: self._mask_bytes])
        self._check()
        return mask

    def accept(self, token: int) -> bool:
        if self._matcher.is_stopped() and token in self._end_ids:
            self._check()
            self._behind += 1
            return True
        taken = int(self._matcher.try_consume_tokens([token]))
        self._check()
        return taken == 1

    def rollback(self, count: int) -> None:
        """Takes back the last `count` accepted tokens."""
        behind = min(count, self._behind)
        self._behind -= behind
        if count > behind and not self._matcher.rollback(count - behind):
            raise ValueError(_line(self._matcher.get_error()) or f"{count} tokens cannot be taken back")

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(_line(self._matcher.get_error()))


class _Words:
    """The vocabulary as llguidance reads it."""

    def __init__(self, table: TokenTable) -> None:
        self.tokens = [table.token_bytes(token) for token in range(table.size)]
        self.special_token_ids = sorted({*table.special.values(), *table.end_ids})
        self.eos_token_id = table.end_ids[0]
        self.bos_token_id = None
        self._encode = table.encode
        special = frozenset(self.special_token_ids)
        self._plain = {word: token for token, word in enumerate(self.tokens) if word and token not in special}
        self._longest = max(map(len, self._plain), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """Ids that spell `text`: the tokenizer's own where they do (one with a dummy prefix adds a space)."""
        try:
            ids = self._encode(text.decode("utf-8"))
        except (UnicodeDecodeError, RequestError):
            return self._greedy(text)
        return ids if b"".join(self.tokens[token] for token in ids) == text else self._greedy(text)

    def _greedy(self, text: bytes) -> list[int]:
        """Longest piece first; stops where no piece fits, which leaves the rest to be drawn."""
        ids: list[int] = []
        while text:
            size = next((n for n in range(min(len(text), self._longest), 0, -1) if text[:n] in self._plain), 0)
            if not size:
                break
            ids.append(self._plain[text[:size]])
            text = text[size:]
        return ids


def _line(error: str) -> str:
    return " ".join(error.split())[:_MAX_ERROR_CHARS]
