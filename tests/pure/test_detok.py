"""The incremental detokenizer against the `tokenizers` library's decode and against Python's UTF-8 decoder."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tokenizers_made import KINDS, made

from tokenmill.errors import FormatError, RequestError
from tokenmill.tokenize.detok import Detokenizer
from tokenmill.tokenize.pieces import piece_rule

# Everything but surrogates, which no text has; weighted towards what breaks: marks, CJK, emoji, spaces.
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="ab 二狐🙂é\u0301\u200d\n\t<|▁", max_size=30),
    st.sampled_from(["👩‍👩‍👧 x", " a", "  two", "▁", "\u2581x", "naïve", "\ufffd", "a\ufffdb", ""]),
)


def pieces_of(kind: str, ids: list[int], continues: bool = False) -> list[str]:
    detokenizer = Detokenizer(made(kind)[1].vocabulary, continues=continues)
    return [*(detokenizer.feed(token) for token in ids), detokenizer.finish()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_pieces_join_to_the_librarys_decode(kind: str, text: str) -> None:
    backend, ours = made(kind)
    ids = backend.encode(text, add_special_tokens=False).ids
    pieces = pieces_of(kind, ids)
    assert "".join(pieces) == backend.decode(ids)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert ours.encode(text) == backend.encode(text).ids
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces), "half a character was shown"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_any_ids_read_as_their_bytes(kind: str, seed: int) -> None:
    """Ids a model may draw, stray bytes among them: the closed form is the bytes' own decoding."""
    rng, vocabulary = Random(seed), made(kind)[1].vocabulary
    ids = [rng.randrange(vocabulary.size) for _ in range(rng.randrange(12))]
    plain = [token for token in ids if token not in vocabulary.special_ids]
    expected = b"".join(vocabulary.token_bytes(token) for token in plain).decode("utf-8", "replace")
    assert "".join(pieces_of(kind, ids, continues=True)) == expected


@pytest.mark.parametrize("kind", ["byte_fallback", "byte_level"])
def test_a_character_comes_with_its_last_byte(kind: str) -> None:
    backend, _ = made(kind)
    name = (lambda b: f"<0x{b:02X}>") if kind == "byte_fallback" else _byte_name
    ids = [backend.token_to_id(name(byte)) for byte in "🦊".encode()]
    assert pieces_of(kind, ids) == ["", "", "", "🦊", ""]
    assert pieces_of(kind, ids[:2]) == ["", "", "\ufffd"]


def _byte_name(byte: int) -> str:
    from tokenmill.tokenize.pieces import byte_alphabet

    return byte_alphabet()[byte]


def test_special_tokens_are_hidden_or_kept() -> None:
    backend, ours = made("byte_level")
    ids = backend.encode("a<|im_end|>b", add_special_tokens=False).ids
    end = ours.vocabulary.token_id("<|im_end|>")
    assert end in ids
    assert ours.decode(ids) == "ab"
    assert ours.decode(ids, skip_special_tokens=False) == "a<|im_end|>b"
    detokenizer = Detokenizer(ours.vocabulary, keep_ids=frozenset({end or 0}))
    assert "".join(detokenizer.feed(token) for token in ids) == "a<|im_end|>b"


def test_the_dummy_prefix_is_dropped_once() -> None:
    backend, ours = made("sentencepiece")
    ids = backend.encode("fox and dog", add_special_tokens=False).ids
    assert ours.decode(ids) == "fox and dog"
    assert "".join(pieces_of("sentencepiece", ids, continues=True)) == " fox and dog"


@pytest.mark.parametrize("kind", KINDS)
def test_one_bos_however_many_are_written(kind: str) -> None:
    backend, ours = made(kind)
    bos = backend.token_to_id("<s>")
    assert ours.encode("<s>hi").count(bos) == 1 == ours.encode("hi").count(bos)
    assert ours.encode("hi", add_special_tokens=False).count(bos) == 0


def test_lone_surrogates_are_refused_and_foreign_decoders_named() -> None:
    with pytest.raises(RequestError, match="D800"):
        made("byte_level")[1].encode("a\ud800")
    with pytest.raises(FormatError, match="WordPiece"):
        piece_rule({"type": "WordPiece", "prefix": "##"})
    with pytest.raises(FormatError, match="none"):
        piece_rule(None)
