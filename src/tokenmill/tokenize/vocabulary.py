"""What each token id stands for, as bytes, and the names of added tokens. Immutable once built.

A token's bytes are what it adds to a text: a byte-fallback token is one byte, so a token may be half a character. A
text is the concatenation of its tokens' bytes read as UTF-8; `detok.py` does it piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AddedToken:
    """A token matched in the text before anything else. `lstrip` and `rstrip` swallow white space beside it."""

    text: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """`piece(id)`: the bytes of an id in [0, size). `strips_first_space`: a text's first space is the tokenizer's."""

    size: int
    piece: Callable[[int], bytes]
    added: dict[str, AddedToken]
    bos_id: int | None = None
    eos_id: int | None = None
    strips_first_space: bool = False
    special_ids: frozenset[int] = field(init=False)
    _seen: dict[int, bytes] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "special_ids", frozenset(t.id for t in self.added.values() if t.special))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes `token_id` adds to a text; none for ids that only pad the model's embedding rows."""
        known = self._seen.get(token_id)
        if known is None:
            known = self.piece(token_id) if 0 <= token_id < self.size else b""
            self._seen[token_id] = known
        return known

    def token_id(self, text: str) -> int | None:
        """The id of an added token by its text."""
        token = self.added.get(text)
        return None if token is None else token.id

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")
