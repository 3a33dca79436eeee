"""tokenizer.json, through the `tokenizers` library."""

from __future__ import annotations

import json
from typing import Any

import tokenizers

from tokenmill.errors import FormatError
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.pieces import piece_rule
from tokenmill.tokenize.tokenizer import Tokenizer
from tokenmill.tokenize.vocabulary import AddedToken, Vocabulary


class _Encoder:
    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def encode(self, text: str, special: bool) -> list[int]:
        # Of all its ways only this one lets other threads run meanwhile, which a 10 MB prompt needs.
        return list(self._backend.encode_batch_fast([text], add_special_tokens=special)[0].ids)


def read(folder: TextFolder) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.json. Raises FormatError where the file cannot be used."""
    path = folder.path / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every malformed file
        raise FormatError(f"tokenizer.json in {folder.path.name} cannot be read: {error}") from None
    return from_backend(backend, folder)


def from_backend(backend: tokenizers.Tokenizer, folder: TextFolder) -> Tokenizer:
    """A tokenizer of a `tokenizers` object and what the folder's other files say about it."""
    # Files saved by a trainer may carry its padding and cut-off; neither belongs to a served model.
    backend.no_truncation()
    backend.no_padding()
    _complete(backend, folder.added_tokens())
    rule = piece_rule(_decoder_of(backend))
    added = {
        t.content: AddedToken(t.content, token_id, t.special, t.lstrip, t.rstrip)
        for token_id, t in backend.get_added_tokens_decoder().items()
    }
    ids = {name: backend.token_to_id(text) for name, text in folder.special_tokens().items()}
    vocabulary = Vocabulary(
        size=max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        piece=lambda token_id: rule.to_bytes(backend.id_to_token(token_id) or ""),
        added=added,
        bos_id=ids.get("bos_token"),
        eos_id=ids.get("eos_token"),
        strips_first_space=rule.strips_first_space,
    )
    config = folder.tokenizer_config
    return Tokenizer(_Encoder(backend), vocabulary, config.get("add_bos_token"), bool(config.get("add_eos_token")))


def _decoder_of(backend: tokenizers.Tokenizer) -> dict[str, Any] | None:
    decoder = backend.decoder
    return None if decoder is None else dict(json.loads(decoder.__getstate__()))


def _complete(backend: tokenizers.Tokenizer, wanted: list[AddedToken]) -> None:
    """Adds tokens that only tokenizer_config.json names, and makes sure that they get the ids it gives them."""
    for token in wanted:
        if backend.token_to_id(token.text) is None:
            made = tokenizers.AddedToken(token.text, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)
            _add(backend, made, token.special)
        if backend.token_to_id(token.text) != token.id:
            raise FormatError(
                f"tokenizer_config.json gives {token.text!r} the id {token.id}, tokenizer.json gives "
                f"{backend.token_to_id(token.text)}; the folder mixes two tokenizers"
            )


def _add(backend: tokenizers.Tokenizer, token: tokenizers.AddedToken, special: bool) -> None:
    if special:
        backend.add_special_tokens([token])
    else:
        backend.add_tokens([token])
