"""Conversion and export: the same integers in every format, and a folder that is whole or not there."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import disk_layouts

from tokenmill.errors import CapacityError, ConfigError, FormatError
from tokenmill.weights import export
from tokenmill.weights.convert import convert_weights
from tokenmill.weights.export import staged, verify
from tokenmill.weights.safetensors_writer import write_safetensors
from tokenmill.weights.source import open_source

N, M, GROUP = 64, 256, 64
LINEARS = ("model.layers.0.q", "model.layers.0.o", "model.layers.1.q")


def codes(seed, low=0, high=16):
    g = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (N, M), generator=g)
    z = torch.randint(low, high, (N, M // GROUP), generator=g)
    return q, z, (torch.rand(N, M // GROUP, generator=g) * 0.05 + 0.01).half()


INDEX = torch.arange(M) // GROUP
LAYOUTS = {
    "awq": lambda q, z, s: disk_layouts.awq(q, z, s),
    "gptq_v2": lambda q, z, s: disk_layouts.gptq(q, z, s, 4, INDEX, 0),
    "gptq_v1": lambda q, z, s: disk_layouts.gptq(q, z, s, 4, INDEX, 1),
    "compressed-tensors": lambda q, z, s: disk_layouts.compressed(q, z, s, 4),
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False}
CT_WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
CONFIGS = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "gptq_v2": GPTQ | {"checkpoint_format": "gptq_v2"},
    "gptq_v1": GPTQ | {"checkpoint_format": "gptq"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": CT_WEIGHTS}},
    },
}  # fmt: skip


def checkpoint(path, form, low=0, high=16):
    """A folder in a format, packed by independent code, with everything a real one has beside."""
    path.mkdir()
    tensors = {"model.embed_tokens.weight": torch.randn(8, M).half(), "lm_head.weight": torch.randn(8, M).half()}
    tensors["model.layers.0.q.bias"] = torch.randn(N).half()
    for seed, name in enumerate(LINEARS):
        tensors |= {f"{name}.{k}": v.contiguous() for k, v in LAYOUTS[form](*codes(seed, low, high)).items()}
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"hidden_size": M, "quantization_config": CONFIGS[form]}))
    (path / "tokenizer.json").write_text('{"a": 1}')
    (path / "modeling_x.py").write_text("x = 1\n")
    (path / "notes.bin").write_bytes(b"not copied")
    return path


@pytest.mark.parametrize("form", LAYOUTS)
@pytest.mark.parametrize("to", LAYOUTS)
def test_every_pair_holds_the_same_numbers(tmp_path, form, to):
    src = checkpoint(tmp_path / "src", form, low=1)
    convert_weights(src, tmp_path / "dst", to)
    source = open_source(tmp_path / "dst")
    for seed, name in enumerate(LINEARS):
        q, z, s = codes(seed, 1)
        assert torch.equal(source.weight(name).dequantize(), disk_layouts.dequantize(q, z, s, INDEX))
    written = load_file(tmp_path / "dst" / "model.safetensors")
    for seed, name in enumerate(LINEARS):
        for suffix, tensor in LAYOUTS[to](*codes(seed, 1)).items():
            assert torch.equal(written[f"{name}.{suffix}"], tensor)
    before = load_file(src / "model.safetensors")
    for plain in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.q.bias"):
        assert torch.equal(written[plain], before[plain])
    verify(tmp_path / "dst")


def test_there_and_back_is_the_same_bytes(tmp_path):
    checkpoint(tmp_path / "a", "awq")
    convert_weights(tmp_path / "a", tmp_path / "b", "gptq")
    convert_weights(tmp_path / "b", tmp_path / "c", "compressed-tensors")
    convert_weights(tmp_path / "c", tmp_path / "d", "awq")
    first, last = (load_file(tmp_path / x / "model.safetensors") for x in "ad")
    assert first.keys() == last.keys() and all(torch.equal(first[k], last[k]) for k in first)
    announced = json.loads((tmp_path / "d" / "config.json").read_text())["quantization_config"]
    assert announced == CONFIGS["awq"] | {"modules_to_not_convert": ["lm_head"]}
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "config.json", "manifest.json", "model.safetensors", "modeling_x.py", "tokenizer.json",
    ]  # fmt: skip


def test_a_zero_that_does_not_fit_names_the_linear(tmp_path):
    checkpoint(tmp_path / "a", "awq")
    with pytest.raises(FormatError, match=r"model.layers.0.[qo]: gptq stores zeros 1..16.*gptq_v2"):
        convert_weights(tmp_path / "a", tmp_path / "b", "gptq_v1")
    checkpoint(tmp_path / "v1", "gptq_v1", low=1, high=17)
    with pytest.raises(FormatError, match=r"model.layers.0.[qo]: AWQ stores zeros 0..15"):
        convert_weights(tmp_path / "v1", tmp_path / "b", "awq")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "v1"]


def test_bin_becomes_safetensors(tmp_path):
    src = checkpoint(tmp_path / "src", "awq")
    tensors = load_file(src / "model.safetensors")
    torch.save(tensors, src / "pytorch_model.bin")
    (src / "model.safetensors").unlink()
    convert_weights(src, tmp_path / "dst", "safetensors")
    written = load_file(tmp_path / "dst" / "model.safetensors")
    assert written.keys() == tensors.keys() and all(torch.equal(written[k], tensors[k]) for k in tensors)
    assert json.loads((tmp_path / "dst" / "config.json").read_text()) == json.loads((src / "config.json").read_text())


def test_refusals(tmp_path):
    src = checkpoint(tmp_path / "src", "awq")
    with pytest.raises(ConfigError, match="'gguf' is unknown; known are awq"):
        convert_weights(src, tmp_path / "dst", "gguf")
    with pytest.raises(ConfigError, match="already exists"):
        convert_weights(src, src, "gptq")
    save_file({"a.weight": torch.zeros(2, 2)}, src / "model.safetensors")
    (src / "config.json").write_text("{}")
    with pytest.raises(FormatError, match="only integer weights"):
        convert_weights(src, tmp_path / "dst", "gptq")
    assert not (tmp_path / "dst").exists() and not (tmp_path / "dst.partial").exists()


@pytest.mark.parametrize("shard_bytes", [1, 600, 10**9])
def test_shards_and_index_read_by_safetensors(tmp_path, shard_bytes):
    g = torch.Generator().manual_seed(0)
    tensors = {f"t{i}": torch.randn(3, 7 + i, generator=g).to(d) for i, d in enumerate(
        [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.int64])}  # fmt: skip
    with staged(tmp_path / "m", shard_bytes) as out:
        for name, tensor in tensors.items():
            out.add(name, tensor)
        out.add_json("config.json", {})
        out.finish({})
    read = {k: v for f in (tmp_path / "m").glob("*.safetensors") for k, v in load_file(f).items()}
    source = open_source(tmp_path / "m")
    for name, tensor in tensors.items():
        for got in (read[name], source.tensor(name)):
            assert got.dtype == tensor.dtype and torch.equal(got.view(torch.uint8), tensor.view(torch.uint8))
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == {1: 6, 600: 1, 10**9: 1}[shard_bytes]
    verify(tmp_path / "m")


def test_verify_finds_every_change(tmp_path):
    convert_weights(checkpoint(tmp_path / "src", "awq"), tmp_path / "dst", "gptq")
    file = tmp_path / "dst" / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(FormatError, match="model.safetensors has changed"):
        verify(tmp_path / "dst")
    file.write_bytes(good)
    verify(tmp_path / "dst")
    save_file({"x": torch.zeros(1)}, tmp_path / "dst" / "more.safetensors")
    with pytest.raises(FormatError, match="more.safetensors, which its manifest does not list"):
        verify(tmp_path / "dst")
    (tmp_path / "dst" / "more.safetensors").unlink()
    (tmp_path / "dst" / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match="tokenizer.json is in the manifest and not in the folder"):
        verify(tmp_path / "dst")
    with pytest.raises(FormatError, match=r"no manifest.json"):
        verify(tmp_path / "src")


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, after):
    src = checkpoint(tmp_path / "src", "awq")
    calls = iter(range(100))
    sync = os.fsync

    def full(handle):
        if next(calls) == after:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CapacityError, match="no room to write dst"):
        convert_weights(src, tmp_path / "dst", "gptq")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_a_real_full_device(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as device:
        class Full:
            def open(self, mode):
                return device
        write_safetensors(Full(), {"x": torch.zeros(8)})


KILLED = """
import sys, time
from tokenmill.weights import export
from tokenmill.weights.convert import convert_weights
# Stands still before call number argv[4] of argv[3], a method of Export, and says that it does.
real, left = getattr(export.Export, sys.argv[3]), int(sys.argv[4])
def still(self, *arguments):
    global left
    if not left:
        print("here", flush=True)
        time.sleep(600)
    left -= 1
    return real(self, *arguments)
setattr(export.Export, sys.argv[3], still)
convert_weights(sys.argv[1], sys.argv[2], "gptq")
"""


@pytest.mark.parametrize(("method", "calls"), [("add", 0), ("add", 7), ("finish", 0)])
def test_killed_at_any_point_leaves_nothing_that_loads(tmp_path, method, calls):
    src = checkpoint(tmp_path / "src", "awq")
    line = [sys.executable, "-c", KILLED, src, tmp_path / "dst", method, str(calls)]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as run:
        assert run.stdout.readline() == b"here\n"
        run.send_signal(signal.SIGKILL)
    assert not (tmp_path / "dst").exists() and (tmp_path / "dst.partial").exists()
    with pytest.raises(FormatError, match="never finished"):
        open_source(tmp_path / "dst.partial")
    convert_weights(src, tmp_path / "dst", "gptq")
    verify(tmp_path / "dst")
    assert not (tmp_path / "dst.partial").exists()


def test_the_partial_folder_is_locked_until_it_has_its_name(tmp_path, monkeypatch):
    """A second writer that comes between the last file and the rename must not take the folder for a dead one's."""
    sync, met = export._sync_folder, []

    def meet(folder):
        if folder.name == "m.partial":
            with pytest.raises(ConfigError, match="being written by another process"), staged(tmp_path / "m"):
                pass
            met.append(folder)
        sync(folder)

    monkeypatch.setattr(export, "_sync_folder", meet)
    with staged(tmp_path / "m") as out:
        out.add("x", torch.zeros(2))
        out.add_json("config.json", {})
        out.finish({})
    verify(tmp_path / "m")
    assert met and export.LOCK not in os.listdir(tmp_path / "m")


def test_a_link_in_place_of_the_partial_folder_is_not_emptied(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("x")
    (tmp_path / "m.partial").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="is a link"), staged(tmp_path / "m"):
        pass
    assert (tmp_path / "other" / "mine").read_text() == "x" and (tmp_path / "m.partial").is_symlink()


def test_two_writers_do_not_meet(tmp_path):
    with staged(tmp_path / "m") as out:
        with pytest.raises(ConfigError, match="being written by another process"), staged(tmp_path / "m"):
            pass
        out.add("x", torch.zeros(2))
        with pytest.raises(FormatError, match="written twice"):
            out.add("x", torch.zeros(2))
        out.add_json("config.json", {})
        out.finish({})
    verify(tmp_path / "m")
    assert export.MANIFEST in os.listdir(tmp_path / "m")
