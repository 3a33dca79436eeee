"""Plain checkpoints: what is written by safetensors itself comes back through our reader bit for bit."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tests.support.disk_layouts import awq, dequantize

from tokenmill.errors import FormatError
from tokenmill.weights.classes import Dense
from tokenmill.weights.source import open_source


def write_folder(folder, tensors, config=None, shards=1):
    """A checkpoint folder; tensors dealt over `shards` files with an index when there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"architectures": ["LlamaForCausalLM"]}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: t for j, (n, t) in enumerate(tensors.items()) if j % shards == i}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def some_tensors():
    torch.manual_seed(0)
    return {
        "model.layers.0.q.weight": torch.randn(6, 4).bfloat16(),
        "model.layers.0.q.bias": torch.randn(6).half(),
        "model.norm.weight": torch.randn(4),
        "odd.empty": torch.zeros(0, 3),
        "odd.scalar": torch.tensor(3.5),
        "odd.ints": torch.arange(7, dtype=torch.int32),
        "odd.fp8": torch.randn(3, 5).to(torch.float8_e4m3fn),
    }


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_comes_back(tmp_path, shards):
    tensors = some_tensors()
    source = open_source(write_folder(tmp_path / "m", tensors, shards=shards))
    assert sorted(source.names()) == sorted(tensors)
    for name, tensor in tensors.items():
        got = source.tensor(name)
        assert got.dtype == tensor.dtype and got.shape == tensor.shape
        assert torch.equal(got.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_a_plain_linear_is_dense(tmp_path):
    tensors = some_tensors()
    source = open_source(write_folder(tmp_path / "m", tensors))
    weight = source.weight("model.layers.0.q")
    assert isinstance(weight, Dense) and weight.shape == (6, 4) and weight.nbytes == 48
    torch.testing.assert_close(weight.dequantize(), tensors["model.layers.0.q.weight"].float(), rtol=0, atol=0)
    a, b = weight.split(0, (4, 2))
    assert torch.equal(a.join(0, (b,)).value, weight.value)
    with pytest.raises(FormatError, match="add up"):
        weight.split(1, (3, 2))


def test_loud_failures_by_name(tmp_path):
    source = open_source(write_folder(tmp_path / "m", some_tensors() | {"z.qweight": torch.zeros(2, 2).int()}))
    with pytest.raises(FormatError, match="nothing called model.layers.9.q"):
        source.weight("model.layers.9.q")
    with pytest.raises(FormatError, match="no format claims z.qweight"):
        source.weight("z")
    with pytest.raises(FormatError, match=r"2 axes.*\(4,\)"):
        source.weight("model.norm")
    with pytest.raises(FormatError, match="no tensor model.layers.0.q.scale.*q.bias"):
        source.tensor("model.layers.0.q.scale")


def test_unknown_method_is_named(tmp_path):
    config = {"text_config": {"quantization_config": {"quant_method": "xyz"}}}
    folder = write_folder(tmp_path / "m", some_tensors(), config)
    with pytest.raises(FormatError, match="xyz"):
        open_source(folder)


@pytest.mark.parametrize("said", [{"turbomind": {"model_name": "internlm-chat-20b", "weight_type": "int4",
                                                 "group_size": 32}}, None])  # fmt: skip
def test_lmdeploys_hub_models_of_2023_are_awq(tmp_path, said):
    """A `turbomind` object in config.json, or the statistics AWQ left behind (then groups of 128)."""
    group = 32 if said else 128
    draw = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (16, 128), generator=draw)
    zeros = torch.randint(0, 16, (16, 128 // group), generator=draw)
    scales = torch.rand(16, 128 // group, generator=draw).half()
    tensors = {f"model.layers.0.q.{name}": value for name, value in awq(codes, zeros, scales).items()}
    folder = write_folder(tmp_path / "m", tensors, said)
    if said is None:
        (folder / "outputs_stats.pth").write_bytes(b"")
    weight = open_source(folder).weight("model.layers.0.q")
    expected = dequantize(codes, zeros, scales, torch.arange(128) // group)
    torch.testing.assert_close(weight.dequantize(torch.float32), expected, atol=0, rtol=1e-6)
