"""Ids to text, one at a time, never half a character.

Contract: the pieces `feed` and `finish` return, joined, equal the decode of the whole sequence, whatever the split. A
character whose bytes are spread over several tokens comes with its last byte; bytes that can no longer become a
character come as U+FFFD at once, a tail that was cut off comes as U+FFFD from `finish`.

Where a byte-fallback run mixes whole characters and stray bytes, the characters are kept; the `tokenizers` library
turns the whole run into U+FFFD, which no incremental decoder can do without taking text back.
"""

from __future__ import annotations

import codecs
from collections.abc import Set

from tokenmill.tokenize.vocabulary import Vocabulary

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """State of one answer. `keep_ids` are special ids shown although special tokens are skipped (tags of tool calls).

    `continues` says that text stands in front of what is fed (a prompt): then the first space is text, while at the
    start of a text sentencepiece's dummy prefix is dropped.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        skip_special_tokens: bool = True,
        keep_ids: Set[int] = frozenset(),
        continues: bool = False,
    ) -> None:
        self._bytes = vocabulary.token_bytes
        self._hidden = vocabulary.special_ids - keep_ids if skip_special_tokens else frozenset()
        self._drop_space = vocabulary.strips_first_space and not continues
        self._utf8 = _UTF8("replace")

    def feed(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is unfinished."""
        if token_id in self._hidden:
            return ""
        return self._first(self._utf8.decode(self._bytes(token_id)))

    def finish(self) -> str:
        """What is left once no token will come."""
        return self._first(self._utf8.decode(b"", final=True))

    def _first(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
