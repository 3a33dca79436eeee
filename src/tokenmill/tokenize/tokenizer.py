"""Text to ids and back, the same for every tokenizer file. No torch, no transformers.

An `Encoder` knows one file format; `Vocabulary` knows what ids stand for; BOS rules live here and only here: a text
that gets special tokens carries exactly one BOS in front where the folder asks for one, however many a template wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tokenmill.errors import RequestError
from tokenmill.tokenize.detok import Detokenizer
from tokenmill.tokenize.vocabulary import Vocabulary


class Encoder(Protocol):
    """Text to ids with added tokens recognised in it. `special` asks for what the file's own post-processor adds."""

    def encode(self, text: str, special: bool) -> list[int]: ...


@dataclass(frozen=True)
class Tokenizer:
    """`add_bos` None leaves BOS to the encoder's post-processor; True or False is what tokenizer_config.json says."""

    encoder: Encoder
    vocabulary: Vocabulary
    add_bos: bool | None = None
    add_eos: bool = False

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`. Raises RequestError where it is no text that UTF-8 can carry (lone surrogates)."""
        _check_unicode(text)
        if not add_special_tokens or self.add_bos is not None:
            ids = self.encoder.encode(text, False)
            return self._framed(ids) if add_special_tokens else ids
        return self._one_bos(self.encoder.encode(text, True))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence; bytes that are no UTF-8 become U+FFFD."""
        detokenizer = Detokenizer(self.vocabulary, skip_special_tokens=skip_special_tokens)
        return "".join([detokenizer.feed(token) for token in ids]) + detokenizer.finish()

    def _framed(self, ids: list[int]) -> list[int]:
        bos, eos = self.vocabulary.bos_id, self.vocabulary.eos_id
        if self.add_bos and bos is not None:
            ids = self._one_bos([bos, *ids])
        if self.add_eos and eos is not None:
            ids = [*ids, eos]
        return ids

    def _one_bos(self, ids: list[int]) -> list[int]:
        bos = self.vocabulary.bos_id
        if bos is None or len(ids) < 2 or ids[0] != bos or ids[1] != bos:
            return ids
        return self._one_bos(ids[1:])


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
            "send well-formed Unicode"
        ) from None
