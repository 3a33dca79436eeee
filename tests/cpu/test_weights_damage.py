"""Folders that are not what they must be: every damage is a FormatError that names the file and the tensor."""

import json
import os
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tokenmill.errors import FormatError
from tokenmill.weights.checkpoint import Checkpoint
from tokenmill.weights.safetensors_header import read_header
from tokenmill.weights.source import open_source

TENSORS = {
    "a.weight": torch.arange(24, dtype=torch.float32).reshape(4, 6),
    "b.weight": torch.arange(8, dtype=torch.float16).reshape(2, 4),
}


def folder(path, tensors=TENSORS):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    save_file(tensors, path / "model.safetensors")
    return path


def header_of(file):
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def forge(file, change):
    """Rewrites the file with its header changed."""
    header, data = header_of(file)
    text = json.dumps(change(header)).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def set_entry(**facts):
    def change(header):
        header["a.weight"] |= facts
        return header

    return change


FORGERIES = {
    "offsets past the end": (set_entry(data_offsets=[0, 10**12]), "a.weight.*truncated"),
    "offsets backwards": (set_entry(data_offsets=[96, 0]), "a.weight.*truncated"),
    "negative offsets": (set_entry(data_offsets=[-96, 0]), "a.weight"),
    "overlap": (set_entry(data_offsets=[8, 104]), "overlap or leave a hole"),
    "shape too large": (set_entry(shape=[4, 7]), "a.weight.*needs 112 bytes, the file gives 96"),
    "shape overflows": (set_entry(shape=[2**40, 2**40]), "a.weight.*needs"),
    "negative shape": (set_entry(shape=[-4, -6]), "a.weight.*no legal shape"),
    "boolean shape": (set_entry(shape=[True, 24]), "a.weight.*no legal shape"),
    "unknown dtype": (set_entry(dtype="F12"), "a.weight.*F12"),
    "dtype of another size": (set_entry(dtype="F64"), "a.weight.*needs 192 bytes"),
    "no dtype": (lambda h: h | {"a.weight": {"shape": [1]}}, "a.weight lacks dtype"),
    "a list": (lambda h: [1], "not a table"),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_forged_headers(tmp_path, case):
    change, word = FORGERIES[case]
    forge(folder(tmp_path / "m") / "model.safetensors", change)
    with pytest.raises(FormatError, match=rf"model.safetensors.*{word}"):
        open_source(tmp_path / "m")


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_truncated_files(tmp_path, keep):
    file = folder(tmp_path / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FormatError, match="model.safetensors"):
        open_source(tmp_path / "m")


def test_a_header_length_that_is_a_lie(tmp_path):
    file = folder(tmp_path / "m") / "model.safetensors"
    raw = file.read_bytes()
    for size in (2**63, 10**9, len(raw)):
        file.write_bytes(size.to_bytes(8, "little") + raw[8:])
        with pytest.raises(FormatError, match="model.safetensors"):
            open_source(tmp_path / "m")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(place=st.integers(0, 200), value=st.integers(0, 255))
def test_one_changed_byte_is_refused_or_harmless(tmp_path, place, value):
    """Whatever byte of the header changes: a FormatError, or tensors whose sizes still fit the file. Nothing else."""
    file = folder(tmp_path / "m") / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[place] = value
    file.write_bytes(bytes(raw))
    try:
        infos, _ = read_header(file)
    except FormatError:
        return
    checkpoint = Checkpoint(tmp_path / "m")
    for name, info in infos.items():
        assert info.offset + info.nbytes <= len(raw) and checkpoint.tensor(name).shape == info.shape


def sharded(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, key in zip(names, TENSORS, strict=True):
        save_file({key: TENSORS[key]}, path / name)
    index = {"metadata": {}, "weight_map": dict(zip(TENSORS, names, strict=True))}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path, index


def test_index_and_shards_that_disagree(tmp_path):
    path, index = sharded(tmp_path / "m")
    file = path / "model.safetensors.index.json"
    one, two = index["weight_map"].values()

    def with_map(weight_map, word):
        file.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(FormatError, match=word):
            open_source(path)

    with_map(index["weight_map"] | {"c.weight": one}, f"places c.weight in {one}")
    with_map({"a.weight": two, "b.weight": two}, f"places a.weight in {two}")
    with_map(index["weight_map"] | {"c.weight": "model-3.safetensors"}, "model-3.safetensors, which is missing")
    with_map(index["weight_map"] | {"c.weight": "../m.safetensors"}, "must lie in the folder itself")
    with_map({}, "no weight_map")
    file.write_text("{")
    with pytest.raises(FormatError, match="index.json is not valid JSON"):
        open_source(path)
    file.unlink()
    (path / two).unlink()
    with pytest.raises(FormatError, match="1 of 2 shards"):
        open_source(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = folder(tmp_path / "m")
    source = open_source(path)
    os.truncate(path / "model.safetensors", 220)
    with pytest.raises(FormatError, match="model.safetensors ended at"):
        [source.tensor(name) for name in TENSORS]


def test_bin_files_are_read_with_a_warning(tmp_path, caplog):
    (tmp_path / "config.json").write_text("{}")
    torch.save(dict(TENSORS), tmp_path / "pytorch_model.bin")
    source = open_source(tmp_path)
    assert all(torch.equal(source.tensor(name), tensor) for name, tensor in TENSORS.items())
    assert "convert-weights" in caplog.text


class Attack:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_pickles_that_are_more_than_tensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "pytorch_model.bin"
    for content in (pickle.dumps(Attack()), b"\x00" * 64, b""):
        file.write_bytes(content)
        with pytest.raises(FormatError, match="pytorch_model.bin"):
            open_source(tmp_path)
    torch.save({"a": Attack()}, file)
    with pytest.raises(FormatError, match="pytorch_model.bin"):
        open_source(tmp_path)
    torch.save({"a": 1}, file)
    with pytest.raises(FormatError, match="other than tensors"):
        open_source(tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "consolidated.00.pth", "last.ckpt"])
def test_other_pickles_are_never_opened(tmp_path, monkeypatch, name):
    (tmp_path / "config.json").write_text("{}")
    torch.save(dict(TENSORS), tmp_path / name)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    with pytest.raises(FormatError, match="holds no weights"):
        open_source(tmp_path)


def test_unfinished_folders_are_refused(tmp_path):
    with pytest.raises(FormatError, match="never finished"):
        open_source(folder(tmp_path / "m.partial"))
    with pytest.raises(FormatError, match="not a folder"):
        Checkpoint(tmp_path / "nothing")
