"""A tiny model of each weight class, written in a real disk format, against its dequantized dense twin."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.packed import Packed

from tokenmill.kernels.reference.prepare_linear import DenseLinear
from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.parity import Probe, check_parity
from tokenmill.models.spec import layer_linears, read_arch
from tokenmill.models.tiny import Tiny, write_tiny
from tokenmill.weights import packing
from tokenmill.weights.classes import Dense, Fp8Block, Fp8Channel, Fp8Tensor, Int8Channel, IntGroup
from tokenmill.weights.contract import Weight
from tokenmill.weights.format import load_format
from tokenmill.weights.scheme import Scheme

E4M3 = torch.float8_e4m3fn
IDS = torch.randint(0, 512, (40,), generator=torch.Generator().manual_seed(6))


def to_ints(w: torch.Tensor, bits: int, group: int | None, symmetric: bool = False) -> IntGroup:
    """Round to nearest; only the storage and the arithmetic on it are tried here."""
    n, m = w.shape
    grouped = w.view(n, -1, group or m)
    top = (1 << bits) - 1
    if symmetric:
        scales = grouped.abs().amax(-1) / (top // 2)
        zeros = torch.full_like(scales, 1 << (bits - 1))
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = (high - low) / top
        zeros = (-low / scales).round().clamp(1, top)
    codes = ((grouped / scales[..., None]).round() + zeros[..., None]).clamp(0, top).to(torch.uint8).view(n, m)
    held = None if symmetric else zeros.to(torch.int16)
    return IntGroup(packing.pack(codes, bits), scales.half(), held, bits, group, m)


def to_int8(w):
    scales = w.abs().amax(-1, keepdim=True) / 127
    return Int8Channel((w / scales).round().to(torch.int8), scales)


def to_fp8_tensor(w):
    scales = (w.abs().max() / 448).view(1, 1)
    return Fp8Tensor((w / scales).to(E4M3), scales)


def to_fp8_channel(w):
    scales = w.abs().amax(-1, keepdim=True) / 448
    return Fp8Channel((w / scales).to(E4M3), scales)


def to_fp8_block(w):
    n, m = w.shape
    padded = torch.nn.functional.pad(w, (0, -m % 128, 0, -n % 128))
    scales = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).abs().amax((1, 3)) / 448
    spread = scales.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :m]
    return Fp8Block((w / spread).to(E4M3), scales, (128, 128))


@dataclass(frozen=True)
class Way:
    scheme: Scheme
    quantize: object

    def folder(self, path, family, **sizes):
        """A tiny checkpoint whose decoder linears are stored in this scheme's format; heads of 128 channels."""
        sizes = {"hidden_size": 512, "intermediate_size": 256, **sizes}
        write_tiny(path, Tiny(family, std=0.08, tokenizer=False, overrides=sizes))
        entry, arch = read_arch(path)
        tensors, form = load_file(path / "model.safetensors"), load_format(self.scheme.format)
        for index in range(arch.num_layers):
            for name in layer_linears(entry, arch, index):
                full = entry.names.layer.format(index) + name
                stored = form.write(self.quantize(tensors.pop(f"{full}.weight")), self.scheme)
                tensors |= {f"{full}.{suffix}": value.contiguous() for suffix, value in stored.items()}
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"] = form.manifest(self.scheme)
        (path / "config.json").write_text(json.dumps(config))
        return path


# The CPU's own backend unpacks weights when they are read; the reference keeps them.
AS_STORED = ModelBuild(backends=())
FP8 = {"format": "compressed_tensors", "bits": 8}
WAYS = {
    "awq": Way(Scheme("awq", "int", "gemm", 4, 128, False), lambda w: to_ints(w, 4, 128)),
    "gptq": Way(Scheme("gptq", "int", "gptq", 4, 128, False), lambda w: to_ints(w, 4, 128)),
    "gptq-8-symmetric": Way(Scheme("gptq", "int", "gptq", 8, 64, True), lambda w: to_ints(w, 8, 64, True)),
    "int8-channel": Way(
        Scheme("compressed_tensors", "int8-channel", "int-quantized", 8, activation="int8-token"), to_int8
    ),
    "fp8-block": Way(Scheme("fp8", "fp8-block", "", 8, block=(128, 128), activation="fp8-group"), to_fp8_block),
    "fp8-tensor": Way(Scheme("fp8", "fp8-tensor", "", 8, activation="fp8-tensor"), to_fp8_tensor),
    "fp8-channel": Way(
        Scheme("compressed_tensors", "fp8-channel", "float-quantized", 8, activation="fp8-token"), to_fp8_channel
    ),
}


@pytest.mark.parametrize("family", ["llama", "internlm2"])
@pytest.mark.parametrize("name", WAYS)
def test_a_quantized_folder_computes_what_its_dense_twin_does(tmp_path, name, family):
    """transformers holds the dequantized weights; the reference the codes, the CPU's backend neither."""
    folder = WAYS[name].folder(tmp_path, family)
    for backends in (None, ()):
        report = check_parity(folder, Probe(tokens=40, backends=backends))
        assert report.ok, str(report)
    kept = held_class(build_model(folder, AS_STORED))
    assert kept is not Dense and issubclass(kept, (IntGroup, Int8Channel, Fp8Tensor, Fp8Channel, Fp8Block))


@pytest.mark.parametrize("name", ["awq", "gptq", "int8-channel", "fp8-block"])
def test_quantized_experts_compute_what_their_dense_twins_do(tmp_path, name):
    folder = WAYS[name].folder(tmp_path, "mixtral", num_local_experts=4)
    report = check_parity(folder, Probe(tokens=40))
    assert report.ok, str(report)
    expert = build_model(folder, AS_STORED).layers[0].mlp.gate_up.linears[3]
    assert type(expert.weight) is not Dense


def test_rows_in_another_order_keep_their_codes_where_each_has_its_own_scales(tmp_path, caplog):
    """GLM's heads are reordered when read: integer codes as they are, FP8 blocks as plain numbers with a warning."""
    held = {}
    for name in ("awq", "int8-channel", "fp8-block"):
        folder = WAYS[name].folder(tmp_path / name, "glm")
        assert check_parity(folder, Probe(tokens=40)).ok
        held[name] = "held as plain numbers" in caplog.text
        caplog.clear()
    assert held == {"awq": False, "int8-channel": False, "fp8-block": True}


def test_fp8_blocks_of_deepseek_v3(tmp_path):
    """Its own disk form: blocks of 128 x 128, partial at edges; what expands the latent is held plain."""
    folder = WAYS["fp8-block"].folder(tmp_path, "deepseek_v3", moe_intermediate_size=128)
    report = check_parity(folder, Probe(tokens=40))
    assert report.ok, str(report)
    assert type(build_model(folder, AS_STORED).layers[2].mlp.gate_up.linears[0].weight) is Fp8Block


def test_heads_that_end_inside_a_block_of_scales_are_held_plain_and_said_so(tmp_path, caplog):
    """InternLM2's grouped rows cannot be taken apart in place where 64 channels share a 128-row block with others."""
    folder = WAYS["fp8-block"].folder(tmp_path, "internlm2", hidden_size=256)
    assert check_parity(folder, Probe(tokens=40)).ok
    assert "held as plain numbers" in caplog.text
    model = build_model(folder, AS_STORED)
    assert type(model.layers[0].attention.qkv.prepared) is DenseLinear
    assert type(model.layers[0].mlp.down.prepared.weight) is Fp8Block


def held_class(model) -> type[Weight]:
    """The class that a layer's fused q, k and v are held in."""
    return type(model.layers[0].attention.qkv.prepared.weight)


def test_weights_can_be_replaced_in_place(tmp_path):
    """`load` keeps the storage: what a captured graph points at stays right."""
    folder = write_tiny(tmp_path, Tiny("llama", tokenizer=False))
    model = build_model(folder, ModelBuild())
    down = model.layers[1].mlp.down
    before = down.prepared.weight_NM.data_ptr()
    new = torch.randn(128, 256, generator=torch.Generator().manual_seed(1))
    down.load(Dense(new), None)
    assert down.prepared.weight_NM.data_ptr() == before
    packed = Packed(model, num_slots=1, max_tokens=64)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.layers.1.mlp.down_proj.weight": new}, folder / "model.safetensors", {"format": "pt"})
    again = Packed(build_model(folder, ModelBuild()), num_slots=1, max_tokens=64)
    assert torch.equal(packed.step([(0, IDS.tolist())])[0], again.step([(0, IDS.tolist())])[0])
    with pytest.raises(ValueError, match="not added"):
        down.load(Dense(new), torch.zeros(128))
