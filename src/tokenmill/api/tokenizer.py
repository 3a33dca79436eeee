"""LMDeploy's `Tokenizer(model_path)`: a model's tokenizer without its weights, with that class's methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tokenmill.api.hub import resolve_model
from tokenmill.tokenize.detok import Detokenizer
from tokenmill.tokenize.loader import load_tokenizer


@dataclass
class Encoded:
    """What calling a tokenizer gives: ids of one text, or of each."""

    input_ids: list[int] | list[list[int]]


@dataclass
class DetokenizeState:
    """Where `detokenize_incrementally` is: `ids_offset` ids were read."""

    ids_offset: int = 0
    detokenizer: Detokenizer | None = field(default=None, repr=False)


class Tokenizer:
    """`model_path`: a folder, a hub name or demo. Raises ConfigError or FormatError."""

    def __init__(self, model_path: str) -> None:
        self._own = load_tokenizer(resolve_model(model_path))

    @property
    def vocab_size(self) -> int:
        return self._own.vocabulary.size

    @property
    def bos_token_id(self) -> int | None:
        return self._own.vocabulary.bos_id

    @property
    def eos_token_id(self) -> int | None:
        return self._own.vocabulary.eos_id

    def encode(self, s: str, add_bos: bool = True, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text; without `add_bos` a first BOS is left out, written by whoever it was."""
        ids = self._own.encode(s, add_special_tokens)
        return ids[1:] if not add_bos and ids[:1] == [self.bos_token_id] else ids

    def decode(self, t: Iterable[int], offset: int | None = None, skip_special_tokens: bool = True) -> str:
        """The text of ids, from `offset` on."""
        return self._own.decode(list(t)[offset or 0 :], skip_special_tokens)

    def detokenize_incrementally(
        self, all_input_ids: Sequence[int], state: DetokenizeState, skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> tuple[str, DetokenizeState]:
        """The text that the ids behind `state.ids_offset` complete, whole characters, and the state after them."""
        first = state.detokenizer or Detokenizer(
            self._own.vocabulary, skip_special_tokens=skip_special_tokens, continues=state.ids_offset > 0
        )
        text = "".join(first.feed(token) for token in all_input_ids[state.ids_offset :])
        return text, DetokenizeState(len(all_input_ids), first)

    def indexes_containing_token(self, token: str) -> list[int]:
        """Ids whose text holds `token`. LMDeploy forbids these for a bad word."""
        vocabulary = self._own.vocabulary
        return [i for i in range(vocabulary.size) if token in vocabulary.token_text(i)]

    def __call__(self, s: str | list[str]) -> Encoded:
        """Ids without special tokens."""
        if isinstance(s, str):
            return Encoded(self._own.encode(s, False))
        return Encoded([self._own.encode(text, False) for text in s])
