"""Mixtures of experts and what came with them: shares of ranks, MXFP4, buckets, rows of several sequences."""

from __future__ import annotations

import json
from itertools import accumulate

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.packed import Packed
from tests.support.thread_group import on_ranks
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tokenmill.errors import FormatError
from tokenmill.kernels.cases.prepare_linear import mxfp4
from tokenmill.kernels.reference.prepare_experts import prepare_experts
from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.parity import LIMIT
from tokenmill.models.solo import Solo
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import load_twin
from tokenmill.weights.classes import Mxfp4
from tokenmill.weights.format import detect, load_format
from tokenmill.weights.record import unstack

IDS = torch.randint(0, 512, (40,), generator=torch.Generator().manual_seed(3))
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def packed_stack(experts: int, n: int, m: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(n)
    blocks = torch.randint(0, 256, (experts, n, m // 32, 16), generator=draws, dtype=torch.uint8)
    scales = torch.randint(121, 126, (experts, n, m // 32), generator=draws, dtype=torch.uint8)
    return {"blocks": blocks, "scales": scales}


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3", "gemma2", "gemma3", "gpt_oss"]
)
def test_two_ranks_compute_what_one_does(family, tmp_path):
    folder = make_tiny(family, tmp_path / family)
    alone = Solo(build_model(folder), len(IDS)).logits(IDS, 9)
    shares = on_ranks(2, lambda group: Solo(build_model(folder, ModelBuild(group=group)), len(IDS)).logits(IDS, 9))
    for share in shares:
        assert float((share - alone).abs().max()) < LIMIT * 5


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gemma3", "gpt_oss"])
def test_rows_beside_each_other_are_as_alone(family, tmp_path):
    """Prompt chunks beside decode rows; and rows that the host does not know."""
    model = build_model(make_tiny(family, tmp_path / family))
    alone = Packed(model, num_slots=2, max_tokens=64)
    wanted = {slot: alone.step([(slot, IDS[slot * 20 : slot * 20 + 20].tolist())])[0] for slot in (0, 1)}
    for host in (True, False):
        packed = Packed(model, num_slots=4, max_tokens=64, host_chunks=host)
        packed.step([(2, IDS[:19].tolist())])
        last, whole = packed.step([(2, IDS[19:20].tolist()), (1, IDS[20:40].tolist())])
        assert float((last[0] - wanted[0][-1]).abs().max()) < LIMIT
        assert float((whole - wanted[1]).abs().max()) < LIMIT


def test_experts_of_a_captured_step_are_those_of_an_eager_one():
    counts = (3, 0, 29, 1)
    linears = prepare_experts(tuple(mxfp4(64, 64) for _ in counts), (None, None, torch.ones(64), None), torch.float32)
    x_PM, ends_E = torch.randn(33, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([*accumulate(counts)])
    torch.testing.assert_close(linears._all_rows(x_PM, ends_E), linears(x_PM, ends_E), rtol=1e-5, atol=1e-5)


def test_mxfp4_is_read_as_transformers_reads_it_and_written_back():
    scheme = detect({"quantization_config": MXFP4})
    form, tensors = load_format(scheme.format), packed_stack(3, 64, 96)
    weight = form.read(tensors, scheme)
    theirs = convert_moe_packed_tensors(tensors["blocks"], tensors["scales"], dtype=torch.float32)
    assert torch.equal(weight.dequantize().mT, theirs)
    back = form.write(weight, scheme)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert form.manifest(scheme) == MXFP4
    assert detect({"quantization_config": form.manifest(scheme)}) == scheme


def test_mxfp4_is_cut_between_groups_only():
    whole = mxfp4(64, 96)
    left, right = whole.split(1, (32, 64))
    assert torch.equal(torch.cat((left.dequantize(), right.dequantize()), 1), whole.dequantize())
    with pytest.raises(FormatError, match="cut a group"):
        whole.split(1, (48, 48))
    with pytest.raises(FormatError, match="do not divide"):
        Mxfp4(torch.zeros(4, 24, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.uint8))
    with pytest.raises(FormatError, match="no expert axis"):
        unstack(whole)


def test_gpt_oss_in_its_published_form(tmp_path):
    """Experts in MXFP4 on our side, as transformers unpacks them on the other; two ranks cut 64 of 128 places."""
    width = {"intermediate_size": 128}
    plain, folder = (make_tiny("gpt_oss", tmp_path / name, overrides=width) for name in ("plain", "mxfp4"))
    tensors = load_file(plain / "model.safetensors")
    dense, held = dict(tensors), dict(tensors)
    for layer in range(3):
        for name, n, m in (("gate_up_proj", 256, 128), ("down_proj", 128, 128)):
            full = f"model.layers.{layer}.mlp.experts.{name}"
            stack = packed_stack(8, n, m)
            dense[full] = convert_moe_packed_tensors(stack["blocks"], stack["scales"], dtype=torch.float32)
            del held[full]
            held |= {f"{full}_{suffix}": value for suffix, value in stack.items()}
    save_file(dense, plain / "model.safetensors", {"format": "pt"})
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": MXFP4}))
    as_stored = build_model(folder, ModelBuild(backends=()))
    assert type(as_stored.layers[0].mlp.down.linears[0].weight) is Mxfp4
    model = build_model(folder)
    theirs = load_twin(plain)(IDS[None]).logits[0].detach()
    ours = Solo(model, len(IDS)).logits(IDS, 9)
    assert float((ours - theirs).abs().max()) < LIMIT * max(1.0, float(theirs.square().mean().sqrt()))
    shares = on_ranks(2, lambda group: Solo(build_model(folder, ModelBuild(group=group)), len(IDS)).logits(IDS, 9))
    assert float((shares[1] - ours).abs().max()) < LIMIT * 5
