"""Vocabularies of ranks against the tiktoken package, and what is wrong with a file."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tokenizers_made import backend_of

from tokenmill.errors import FormatError
from tokenmill.tokenize.loader import load_tokenizer
from tokenmill.tokenize.pieces import byte_level
from tokenmill.tokenize.tiktoken import SPECIALS, SPLIT
from tokenmill.tokenize.tokenizer import Tokenizer

tiktoken = pytest.importorskip("tiktoken")
TEXTS = (
    "the quick brown fox 12345 jumps", "一只狐狸跳过了那只懒狗", "naïve café\u0301 👩‍👩‍👧\n\n  x", "aaaaaaaaa abababab",
    "<|im_start|>user\nhello<|im_end|>\n", "", "   ", "it's WE'LL don'T",
)  # fmt: skip


def ranks() -> list[bytes]:
    """The 256 bytes, then a trained vocabulary's tokens in the order in which they were learnt, then a filler."""
    learnt = sorted(backend_of("byte_level").get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    tokens = [byte_level()(name) for name, _ in learnt]
    chained = [b"aa", b"aaa", b"aaaa", b"ab", b"abab"]
    longer = [token for token in dict.fromkeys([*tokens, *chained]) if len(token) > 1]
    return [*(bytes([b]) for b in range(256)), *longer, b"\xff\xff\xff filler \xff"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen")
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks())]
    (path / "qwen.tiktoken").write_bytes(b"".join(lines))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer", "model_max_length": 8192}')
    return path


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Tokenizer, object]:
    tokens = ranks()
    specials = {text: len(tokens) + i for i, text in enumerate(SPECIALS)}
    theirs = tiktoken.Encoding(
        "qwen", pat_str=SPLIT, mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens=specials,
    )  # fmt: skip
    return load_tokenizer(folder), theirs


def agree(pair: tuple[Tokenizer, object], text: str) -> None:
    import unicodedata

    ours, theirs = pair
    expected = theirs.encode(unicodedata.normalize("NFC", text), allowed_special="all")  # type: ignore[attr-defined]
    ids = ours.encode(text)
    assert ids == expected
    assert ours.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_tiktokens(pair: tuple[Tokenizer, object], text: str) -> None:
    agree(pair, text)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text(alphabet="ab the", max_size=60)))
def test_any_text(pair: tuple[Tokenizer, object], text: str) -> None:
    agree(pair, text)


def test_specials_follow_the_ranks(pair: tuple[Tokenizer, object]) -> None:
    ours = pair[0]
    first = len(ranks())
    assert [ours.vocabulary.token_id(text) for text in SPECIALS[:3]] == [first, first + 1, first + 2]
    assert ours.vocabulary.size == first + 208
    assert ours.decode([first, ours.encode("x")[0]]) == "x"


@pytest.mark.parametrize(
    ("lines", "told"),
    [(b"AA== 0\nnot base64 1\n", "line 2"), (b"AA== 0\nAQ== 2\n", "rank 2 where"),
     (b"AA== 0\nAA== 1\n", "rank 1 where"), (b"AA== 0\n", "no token for byte 1"),
     (b"\n", "line 1"), (b"AA==\n", "line 1")],
)  # fmt: skip
def test_what_is_wrong_with_a_file(tmp_path: Path, lines: bytes, told: str) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(lines)
    with pytest.raises(FormatError, match=told):
        load_tokenizer(tmp_path)


def test_two_files(folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.tiktoken").write_bytes((folder / "qwen.tiktoken").read_bytes())
    with pytest.raises(FormatError, match="2 tiktoken files"):
        load_tokenizer(tmp_path)


def test_another_familys_ranks_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kimi.tiktoken").write_bytes((folder / "qwen.tiktoken").read_bytes())
    with pytest.raises(FormatError, match="no Qwen vocabulary"):
        load_tokenizer(tmp_path)


def test_a_qwen_folder_answers(folder: Path, tmp_path: Path) -> None:
    """A first-generation Qwen folder: no tokenizer.json, no template of its own, no special tokens in its files."""
    import tokenmill
    from tokenmill.models.tiny import Tiny, write_tiny

    path = write_tiny(tmp_path / "Qwen-7B-Chat", Tiny("qwen", tokenizer=False, overrides={"vocab_size": 1024}))
    for name in ("qwen.tiktoken", "tokenizer_config.json"):
        (path / name).write_bytes((folder / name).read_bytes())
    wish = tokenmill.PytorchEngineConfig(dtype="float32", device_type="cpu", session_len=256)
    with tokenmill.pipeline(str(path), wish) as pipe:
        answer = pipe("你好", tokenmill.GenerationConfig(max_new_tokens=3, ignore_eos=True))
        assert answer.generate_token_len == 3
        text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
        asked = load_tokenizer(path).encode(text + "<|im_start|>assistant\n")
        assert answer.input_token_len == len(asked)
