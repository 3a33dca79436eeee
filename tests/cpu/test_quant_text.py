"""Calibration text: files of every kind, names of public sets, windows that do not overlap what is measured on."""

import json

import numpy as np
import pytest

from tokenmill.errors import ConfigError, FormatError
from tokenmill.quant.text import NAMED, Choice, calibration, draw, python_text


def words(text):
    """One id a word."""
    return [hash(word) % 1000 for word in text.split()]


def test_there_is_enough_text_without_a_network():
    """128 x 2,048 tokens and the held-out windows, at 6 characters a token, more than tokenizers of 90k pieces need."""
    chars = 0
    for text in python_text():
        chars += len(text)
        if chars >= 132 * 2048 * 6:
            return
    pytest.fail(f"only {chars} characters")


@pytest.mark.parametrize("name", NAMED)
def test_named_sets_are_stood_in_for_and_said(name, caplog):
    found = calibration(Choice(name, samples=2, seqlen=16), words)
    assert found.origin == "python-docs" and len(found.samples) == 2 and name in caplog.text
    assert found == calibration(Choice("python-docs", samples=2, seqlen=16), words)


def test_files_of_every_kind(tmp_path):
    lines = [f"line {i} of some text that is not short" for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    np.save(tmp_path / "a.npy", np.arange(400).reshape(4, 100))
    for name in ("a.txt", "a.jsonl", "a.npy"):
        found = calibration(Choice(str(tmp_path / name), samples=3, seqlen=20, held=2), words)
        assert [len(w) for w in found.samples + found.held] == [20] * 5 and found.origin == name
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads parquet")
    table = pytest.importorskip("pyarrow").table({"content": lines})
    parquet.write_table(table, tmp_path / "a.parquet")
    a, b = (calibration(Choice(str(tmp_path / f"a.{k}"), 3, 20), words) for k in ("parquet", "jsonl"))
    assert a.samples == b.samples


def test_windows_follow_the_seed_and_spare_the_held_out_end():
    ids = np.arange(1000)
    one = draw(ids, Choice(samples=50, seqlen=40, seed=1, held=3), "x")
    assert one == draw(ids, Choice(samples=50, seqlen=40, seed=1, held=3), "x")
    assert one.digest != draw(ids, Choice(samples=50, seqlen=40, seed=2, held=3), "x").digest
    assert [window[0] for window in one.held] == [880, 920, 960]
    assert max(max(window) for window in one.samples) < 880
    assert all(window == tuple(range(window[0], window[0] + 40)) for window in one.samples)


def test_what_cannot_be_used_is_said(tmp_path):
    def refused(name, word, content=None, error=FormatError):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=word):
            calibration(Choice(str(tmp_path / name), samples=2, seqlen=32), words)

    refused("none.txt", "does not exist")
    refused("empty.txt", "0 tokens, too few for one window of 32", b"", ConfigError)
    refused("short.txt", "2 tokens, too few", b"a b", ConfigError)
    refused("bad.txt", "not UTF-8", b"\xff\xfe\xfa")
    refused("bad.jsonl", "line 2 is not JSON", b'{"text": "a"}\n{')
    refused("fields.jsonl", "line 1 has none of the fields", b'{"body": "a"}')
    refused("bad.npy", "no array of token ids", b"12345")
    np.save(tmp_path / "float.npy", np.zeros(4))
    refused("float.npy", "token ids are whole numbers")
    refused("set", "no known set and no file", error=ConfigError)
    with pytest.raises(ConfigError, match="too short"):
        Choice(seqlen=2)
    with pytest.raises(ConfigError, match="negative"):
        Choice(samples=-1)
