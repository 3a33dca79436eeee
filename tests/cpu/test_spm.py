"""tokenizer.model: ids and texts equal those of the sentencepiece package that made the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tokenizers_made import TEXTS

from tokenmill.errors import FormatError
from tokenmill.tokenize.loader import load_tokenizer
from tokenmill.tokenize.tokenizer import Tokenizer

Pair = tuple[Tokenizer, sentencepiece.SentencePieceProcessor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spm")
    corpus = path / "corpus.txt"
    corpus.write_text("\n".join(line for text in TEXTS for line in text.splitlines() if line), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(path / "tokenizer"), vocab_size=420, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    added = {str(n): {"content": text, "special": True} for n, text in ((900, "<|im_start|>"), (901, "<|im_end|>"))}
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "added_tokens_decoder": added}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    model = sentencepiece.SentencePieceProcessor()
    model.load(str(folder / "tokenizer.model"))
    return load_tokenizer(folder), model


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=25), st.text(alphabet="ab 二狐🙂é\n<▁", max_size=25)))
def test_ids_and_text_are_sentencepieces(pair: Pair, text: str) -> None:
    ours, model = pair
    if "\x00" in text or any(mark in text for mark in ("<s>", "</s>", "<unk>")):
        return
    ids = model.encode(text)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert ours.encode(text) == [model.bos_id(), *ids]
    if "\ufffd" not in text:
        assert ours.decode(ids) == model.decode(ids)


@pytest.mark.parametrize("legacy", [True, False])
def test_special_tokens_are_found_in_text(folder: Path, pair: Pair, legacy: bool, tmp_path: Path) -> None:
    """Old files put sentencepiece's dummy prefix behind every special token; `legacy` false only before the text."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": legacy}))
    ours, model = load_tokenizer(tmp_path), pair[1]
    ids = ours.encode("<|im_start|>user\nthe fox<|im_end|>\n")
    assert ids[:2] == [model.bos_id(), 900] and ids[-2 - legacy] == 901
    gap = " " if legacy else ""
    assert ours.decode(ids, skip_special_tokens=False) == f"<s><|im_start|>{gap}user\nthe fox<|im_end|>{gap}\n"
    assert ours.decode(ids).lstrip() == f"user\nthe fox{gap}\n"
    assert ours.vocabulary.token_id("<|im_end|>") == 901
    assert ours.encode("<s>the").count(model.bos_id()) == 1


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"has no tokenizer: no tokenizer\.json, tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"garbage")
    with pytest.raises(FormatError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
