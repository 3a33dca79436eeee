"""tokenizer.model, through sentencepiece, with the names `added_tokens_decoder` gives its spare pieces.

A real InternLM2 folder has only this file: `<|im_start|>` is `[UNUSED_TOKEN_146]` in it, and tokenizer_config.json
renames the id. Text is split on added tokens first (longest match), the spans between them are encoded one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tokenmill.errors import ConfigError, FormatError
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.pieces import SPACE
from tokenmill.tokenize.tokenizer import Tokenizer
from tokenmill.tokenize.vocabulary import AddedToken, Vocabulary


def read(folder: TextFolder) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.model only. Raises FormatError, or ConfigError without sentencepiece."""
    model = _load(folder)
    added = _added(folder, model)
    names = {token.id: token.text for token in added.values()}
    special = folder.special_tokens()
    prefix = model.encode("a", out_type=str)[0].startswith(SPACE)
    vocabulary = Vocabulary(
        size=max([model.get_piece_size(), *(token_id + 1 for token_id in names)]),
        piece=lambda token_id: _piece(model, names, token_id),
        added=added,
        bos_id=_id(special.get("bos_token"), added, model.bos_id()),
        eos_id=_id(special.get("eos_token"), added, model.eos_id()),
        strips_first_space=prefix,
    )
    config = folder.tokenizer_config
    encoder = _Encoder(model, added, prefix and not config.get("legacy", True))
    return Tokenizer(encoder, vocabulary, bool(config.get("add_bos_token", True)), bool(config.get("add_eos_token")))


class _Encoder:
    def __init__(self, model: Any, added: dict[str, AddedToken], prefix_once: bool) -> None:
        self._model = model
        self._added = added
        self._prefix_once = prefix_once
        longest_first = sorted(added, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if added else None

    def encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = []
        for span, token in self._spans(text):
            if span:
                ids += self._span(span, first=not ids)
            if token is not None:
                ids.append(token.id)
        return ids

    def _spans(self, text: str) -> Iterator[tuple[str, AddedToken | None]]:
        """Pairs of plain text and the added token behind it, in order."""
        start, strip_left = 0, False
        for match in self._pattern.finditer(text) if self._pattern else ():
            token = self._added[match[0]]
            span = text[start : match.start()]
            span = span.lstrip() if strip_left else span
            yield (span.rstrip() if token.lstrip else span), token
            start, strip_left = match.end(), token.rstrip
        rest = text[start:]
        yield (rest.lstrip() if strip_left else rest), None

    def _span(self, text: str, first: bool) -> list[int]:
        if first or not self._prefix_once:
            return list(self._model.encode(text))
        # sentencepiece puts its dummy prefix before every text; here it goes before a marker that is cut off again.
        marker = self._model.encode("\n")
        ids = self._model.encode("\n" + text)
        return list(ids[len(marker) :])


def _load(folder: TextFolder) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise ConfigError(
            f"{folder.path.name} has only tokenizer.model, which needs the sentencepiece package; "
            "run pip install sentencepiece"
        ) from None
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.load(str(folder.path / "tokenizer.model"))
    except (RuntimeError, OSError) as error:
        raise FormatError(f"tokenizer.model in {folder.path.name} cannot be read: {error}") from None
    return model


def _added(folder: TextFolder, model: Any) -> dict[str, AddedToken]:
    found = {token.text: token for token in folder.added_tokens()}
    for text in folder.special_tokens().values():
        if text not in found and model.piece_to_id(text) != model.unk_id():
            found[text] = AddedToken(text, model.piece_to_id(text))
    if "<unk>" not in found and model.unk_id() >= 0:
        text = model.id_to_piece(model.unk_id())
        found.setdefault(text, AddedToken(text, model.unk_id()))
    return found


def _piece(model: Any, names: dict[int, str], token_id: int) -> bytes:
    if token_id in names:
        return names[token_id].encode("utf-8")
    if token_id >= model.get_piece_size():
        return b""
    name = str(model.id_to_piece(token_id))
    if model.is_byte(token_id):
        return bytes([int(name[3:5], 16)])
    return name.replace(SPACE, " ").encode("utf-8")


def _id(text: str | None, added: dict[str, AddedToken], own: int) -> int | None:
    token = added.get(text) if text is not None else None
    if token is not None:
        return token.id
    return own if own >= 0 else None
