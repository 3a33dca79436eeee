"""Quantized KV caches end to end: transformers with a cache that rounds by the published formulas; any chunking."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.packed import Packed
from transformers import DynamicCache

from tokenmill.config import KV_KINDS
from tokenmill.kernels.cases.kv_write import hadamard
from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import load_twin

QUANTIZED = [kv for kv in KV_KINDS if kv != "auto"]
IDS = torch.randint(0, 512, (70,), generator=torch.Generator().manual_seed(5))


def asymmetric(x, levels):
    """q = floor((x - min) / s + 0.5) with scale and minimum in fp16."""
    low = x.amin(-1, keepdim=True).half().float()
    scale = ((x.amax(-1, keepdim=True) - low) / levels).half().float()
    return ((x - low) / scale + 0.5).floor().clamp(0, levels) * scale + low


def rounded(kv, x):
    """x [..., K] as a cache of this kind gives it back; written out here, not taken from the kinds."""
    if kv == "fp8":
        scale = (x.abs().amax(-1, keepdim=True) / 448).half().float()
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    if kv == "int4":
        H = hadamard(x.shape[-1]).float()
        return asymmetric(x @ H, 15) @ H
    return asymmetric(x, 255 if kv == "int8" else 15)


class RoundingCache(DynamicCache):
    """Keys (behind rope) and values pass through a kind's rounding on their way into attention."""

    def __init__(self, kv):
        super().__init__()
        self.kv = kv

    def update(self, key_states, value_states, *args, **more):
        return super().update(rounded(self.kv, key_states), rounded(self.kv, value_states), *args, **more)


@pytest.fixture(scope="module")
def model_and_twin(tmp_path_factory):
    folder = make_tiny("internlm2", tmp_path_factory.mktemp("m"), std=0.1)
    return folder, build_model(folder), load_twin(folder)


@pytest.fixture(scope="module")
def wanted(model_and_twin):
    twin = model_and_twin[2]

    @cache
    @torch.inference_mode()
    def logits(kv):
        return twin(IDS[None], past_key_values=RoundingCache(kv) if kv != "auto" else None, use_cache=True).logits[0]

    return logits


def run(model, kv, sizes):
    packed = Packed(model, num_slots=2, max_tokens=256, kv=kv)
    packed.start(1, len(IDS))
    return torch.cat([packed.step([(1, part.tolist())])[0] for part in torch.split(IDS, sizes)])


def rms(x):
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("backends", [None, ()], ids=["cpu", "reference"])
@pytest.mark.parametrize("kv", QUANTIZED)
def test_logits_are_those_of_transformers_with_a_rounding_cache(model_and_twin, wanted, kv, backends):
    """Sums that differ in the last place may round to the next step of the grid: such jumps are rare, and far below
    what the cache's rounding changes at all."""
    model = build_model(model_and_twin[0], ModelBuild(kv=kv, backends=backends))
    got = run(model, kv, 70)
    assert rms(got - wanted(kv)) < 0.02 * rms(wanted(kv) - wanted("auto"))


@pytest.mark.parametrize("sizes", [1, 7, [33, 1, 1, 30, 5]], ids=["steps", "chunks of 7", "mixed"])
@pytest.mark.parametrize("kv", QUANTIZED)
def test_every_chunking_attends_over_the_same_numbers(model_and_twin, wanted, kv, sizes):
    """A model that attended over a chunk's own unrounded keys would differ as much as rounding does."""
    model = model_and_twin[1]
    got = run(model, kv, sizes)
    assert rms(got - run(model, kv, 70)) < 0.02 * rms(wanted(kv) - wanted("auto"))


def test_kinds_lose_as_much_as_their_bits_say(wanted):
    loss = {kv: rms(wanted(kv) - wanted("auto")) for kv in QUANTIZED}
    assert loss["int8"] < loss["fp8"] < loss["int4"]
    assert loss["int8"] < loss["int4"] / 8


def test_rotation_spares_a_large_key_bias(tmp_path):
    """As Qwen2 has it: a few key channels with a bias far above everything else. Softmax does not see what is added to
    all keys alike, but a grid that must span it has no steps left for the rest. Attention reads the cache itself."""
    one_head = {"num_attention_heads": 1, "num_key_value_heads": 1}
    folder = make_tiny("qwen2", tmp_path / "m", std=0.1, overrides=one_head)
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith("k_proj.bias"):
            assert value.shape == (128,)
            value[[3, 90]] += 40.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    plain = run(build_model(folder), "auto", 70)
    loss = {kv: rms(run(build_model(folder, ModelBuild(kv=kv)), kv, 70) - plain) for kv in QUANTIZED}
    assert loss["int4"] < 0.6 * loss["int4-plain"] and loss["int8"] < loss["int4"], loss
