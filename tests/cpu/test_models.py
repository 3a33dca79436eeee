"""Tiny models of every family against transformers in fp32: one shot, step by step, in chunks, in a batch.

References are transformers' own classes reading the same folder; InternLM2 goes through its Llama twin, whose
regrouping is checked row by row against the published index formula.
"""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch
from tests.support.packed import Packed

from tokenmill.config import ModelConfig
from tokenmill.errors import ConfigError, FormatError
from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.internlm2 import twin_tensors
from tokenmill.models.spec import families, read_spec
from tokenmill.models.tiny import Tiny, make_tiny, random_tensors, write_tiny
from tokenmill.models.twin import load_twin

LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
               "rope_type": "llama3"}
# Limits are low, so that a prompt of 90 tokens crosses them.
SHAPES = {
    "llama-1": ("llama", {"num_key_value_heads": None, "rms_norm_eps": 1e-6, "rope_scaling": None}),
    "llama-2-gqa": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "llama-3": ("llama", {"rope_theta": 5e5}),
    "llama-3.1": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE, "attention_bias": False}),
    "llama-3.2-tied": ("llama", {"rope_theta": 5e5, "rope_scaling": {**LLAMA3_ROPE, "factor": 32.0},
                                 "tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 64}),
    "llama-linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama-dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64}),
    "llama-yarn": ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                                              "original_max_position_embeddings": 64}}),
    "llama-longrope": ("llama", {"rope_scaling": {
        "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64,
        "short_factor": [1.0 + i / 20 for i in range(16)], "long_factor": [1.5 + i / 3 for i in range(16)]}}),
    "internlm2": ("internlm2", {"rope_scaling": None}),
    "internlm2.5-within": ("internlm2", {}),
    "internlm2.5-beyond": ("internlm2", {"max_position_embeddings": 64}),
    "internlm2-factor-3": ("internlm2", {"rope_scaling": {"type": "dynamic", "factor": 3.0},
                                         "max_position_embeddings": 64}),
    "internlm2-bias": ("internlm2", {"bias": True}),
    "internlm2-one-group": ("internlm2", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "internlm2-no-groups": ("internlm2", {"num_attention_heads": 4, "num_key_value_heads": 4}),
}
IDS = torch.randint(0, 512, (90,), generator=torch.Generator().manual_seed(3))
CPU_BACKENDS = pytest.mark.parametrize("backends", [None, ()], ids=["cpu", "reference"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return cache(lambda name: make_tiny(SHAPES[name][0], tmp_path_factory.mktemp(name), overrides=SHAPES[name][1]))


@pytest.fixture(scope="module")
def wanted(folders):
    """transformers' logits of IDS; a new model each time, because its dynamic rope remembers."""

    @cache
    @torch.inference_mode()
    def logits(name: str) -> torch.Tensor:
        return reference(folders(name))(IDS[None]).logits[0]

    return logits


def reference(folder):
    """transformers' own reading of the folder where it knows the family."""
    from transformers import AutoModelForCausalLM

    if json.loads((folder / "config.json").read_text())["model_type"] != "llama":
        return load_twin(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def in_chunks(model, ids: torch.Tensor, sizes, kv="auto", host_chunks=True) -> torch.Tensor:
    packed = Packed(model, num_slots=2, max_tokens=256, kv=kv, host_chunks=host_chunks)
    packed.start(1, len(ids))
    return torch.cat([packed.step([(1, part.tolist())])[0] for part in torch.split(ids, sizes)])


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


@CPU_BACKENDS
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(folders, wanted, name, backends):
    model = build_model(folders(name), ModelBuild(backends=backends))
    assert float(wanted(name).std()) > 1
    assert error(in_chunks(model, IDS, 90), wanted(name)) < 1e-4
    assert error(in_chunks(model, IDS, [7] * 12 + [6]), wanted(name)) < 1e-4


@CPU_BACKENDS
@pytest.mark.parametrize("name", ["llama-3.1", "llama-dynamic", "internlm2.5-beyond"])
def test_step_by_step_equals_one_shot(folders, wanted, name, backends):
    """The dynamic base belongs to the request, so that tokens come out as the prompt at once would give them."""
    model = build_model(folders(name), ModelBuild(backends=backends))
    assert error(in_chunks(model, IDS, 1), wanted(name)) < 1e-4


@pytest.mark.parametrize("name", ["llama-2-gqa", "internlm2"])
def test_rows_that_the_host_does_not_know_are_padded(folders, wanted, name):
    model = build_model(folders(name))
    assert error(in_chunks(model, IDS, 30, host_chunks=False), wanted(name)) < 1e-4


@CPU_BACKENDS
@pytest.mark.parametrize("name", ["llama-3", "internlm2.5-beyond"])
def test_batched_equals_alone(folders, name, backends):
    """Prompts either side of the rope limit, prompt chunks beside decode rows, slots in no order."""
    model = build_model(folders(name), ModelBuild(backends=backends))
    prompts = {5: IDS[:88], 0: IDS[10:40], 3: IDS[20:85], 2: IDS[:3]}
    packed = Packed(model, max_tokens=256)
    rest, got = {slot: ids.tolist() for slot, ids in prompts.items()}, {slot: [] for slot in prompts}
    for slot, ids in prompts.items():
        packed.start(slot, len(ids))
    step = 0
    while any(rest.values()):
        step += 1
        sizes = {slot: (1, 4, 9, 25)[(slot + step) % 4] for slot in rest}
        work = [(slot, ids[: sizes[slot]]) for slot, ids in rest.items() if ids]
        for (slot, part), logits in zip(work, packed.step(work), strict=True):
            got[slot].append(logits)
            rest[slot] = rest[slot][len(part) :]
    for slot, ids in prompts.items():
        assert error(torch.cat(got[slot]), in_chunks(model, ids, len(ids))) < 1e-4


@CPU_BACKENDS
def test_a_row_that_fails_spoils_no_other(folders, backends):
    """Its blocks neither, when they are given on: caches full of NaN change nothing."""
    model = build_model(folders("llama-3"), ModelBuild(backends=backends))
    packed = Packed(model, max_tokens=256)
    for pages in packed.caches:
        for plane in pages.planes.values():
            plane.fill_(torch.nan)
    model.embedding.table_VD[511] = torch.nan
    packed.start(0, 30), packed.start(1, 30)
    ids = IDS[:30].clamp(max=510).tolist()
    good, bad = packed.step([(0, ids), (1, [*ids[:9], 511, *ids[10:]])])
    assert bad[9:].isnan().all() and good.isfinite().all()
    good = [good] + [packed.step([(0, [token]), (1, [token])])[0] for token in (4, 5)]
    model.embedding.table_VD[511] = 0.0
    assert error(torch.cat(good), in_chunks(model, torch.tensor([*ids, 4, 5]), 32)) < 1e-4


def test_a_prompt_keeps_its_base_while_it_grows_past_the_limit(folders):
    """A prompt of 40 and 50 tokens more, P = 64: every token is turned by the base of 40."""
    model = build_model(folders("internlm2.5-beyond"))
    packed = Packed(model, max_tokens=256)
    packed.start(0, 40)
    got = torch.cat([packed.step([(0, part.tolist())])[0] for part in torch.split(IDS, [40] + [1] * 50)])
    # transformers with the plain base, which is what a prompt within the limit has.
    twin = load_twin(folders("internlm2.5-beyond"), ModelConfig(hf_overrides={"rope_scaling": None}))
    with torch.inference_mode():
        assert error(got, twin(IDS[None]).logits[0]) < 1e-4


def test_the_twin_takes_wqkv_apart_by_the_published_row_index():
    config = {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 12}
    rows = torch.arange(10 * 2).float()[:, None].expand(20, 12).contiguous()
    parts = twin_tensors({"model.layers.0.attention.wqkv.weight": rows}, config)
    g, K = 3, 2
    places = {
        "q": [((head // g) * (g + 2) + head % g) * K + d for head in range(6) for d in range(K)],
        "k": [(head * (g + 2) + g) * K + d for head in range(2) for d in range(K)],
        "v": [(head * (g + 2) + g + 1) * K + d for head in range(2) for d in range(K)],
    }
    for letter, wanted in places.items():
        assert parts[f"model.layers.0.self_attn.{letter}_proj.weight"][:, 0].tolist() == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_err_no_more_than_twice_as_much_as_in_transformers(tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    # Both round the weights of the same fp32 folder.
    folder = make_tiny("llama", tmp_path / "m", std=0.08)
    with torch.inference_mode():
        exact = reference(folder)(IDS[None]).logits[0]
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        theirs = theirs(IDS[None]).logits[0].float()
    ours = in_chunks(build_model(folder, ModelBuild(dtype=dtype)), IDS, 90)
    rms = lambda x: float((x - exact).square().mean().sqrt())
    assert rms(ours) < 2 * rms(theirs)


def test_logn_attention_multiplies_queries_past_the_trained_length(folders):
    """By hand in transformers: q times log(p) / log(64) from the 1-based position 65 on."""
    folder = folders("llama-3")
    config = ModelConfig(use_logn_attn=True, hf_overrides={"max_position_embeddings": 64}, max_model_tokens=256)
    model = build_model(folder, ModelBuild(config=config))
    assert model.spec.logn
    factors = torch.tensor([max(1.0, math.log(p) / math.log(64)) for p in range(1, 91)])
    twin = reference(folder)
    for layer in twin.model.layers:
        # Rope turns without stretching, so scaling before it is scaling after it.
        layer.self_attn.q_proj.register_forward_hook(lambda _, __, out: out * factors[:, None])
    with torch.inference_mode():
        wanted = twin(IDS[None]).logits[0]
        assert error(wanted, reference(folder)(IDS[None]).logits[0]) > 1e-2
    assert error(in_chunks(model, IDS, [50, 30, 10]), wanted) < 1e-4


def test_a_rope_factor_forced_by_the_user_is_dynamic_ntk(folders):
    config = ModelConfig(rope_scaling_factor=2.0, hf_overrides={"max_position_embeddings": 64}, max_model_tokens=256)
    forced = build_model(folders("llama-1"), ModelBuild(config=config))
    asked = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64}
    twin = load_twin(folders("llama-1"), ModelConfig(hf_overrides=asked))
    with torch.inference_mode():
        assert error(in_chunks(forced, IDS, 90), twin(IDS[None]).logits[0]) < 1e-4


@pytest.mark.parametrize("name", families())
def test_parameters_are_counted_as_they_lie_on_disk(name):
    family = families()[name]
    for overrides in ({}, {"tie_word_embeddings": True}, {"bias": True, "attention_bias": True, "mlp_bias": True}):
        config = {**family.tiny, **overrides}
        tensors = random_tensors(family, family.arch(config), 0, 0.1)
        spec = read_spec(config)
        assert spec.linear_params + spec.other_params == sum(t.numel() for t in tensors.values())


def test_published_parameter_counts():
    """InternLM2 sizes as published (models' index files), Llama-2-7B 6,738,415,616, Llama-3-8B 8,030,261,248."""
    def count(family, **sizes):
        spec = read_spec({**families()[family].tiny, **sizes})
        return spec.linear_params + spec.other_params

    internlm2 = {"vocab_size": 92544, "num_key_value_heads": 8}
    assert count("internlm2", **internlm2, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                 num_attention_heads=32) == 7_737_708_544
    assert count("internlm2", **internlm2, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24,
                 num_attention_heads=16) == 1_889_110_016
    assert count("internlm2", **internlm2, hidden_size=6144, intermediate_size=16384, num_hidden_layers=48,
                 num_attention_heads=48) == 19_861_149_696
    assert count("llama", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                 num_attention_heads=32, num_key_value_heads=32) == 6_738_415_616
    assert count("llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                 num_attention_heads=32, num_key_value_heads=8) == 8_030_261_248


@pytest.mark.parametrize(
    ("overrides", "failure", "said"),
    [
        ({"architectures": ["LlamoForCausalLM"]}, ConfigError, "nearest is LlamaForCausalLM"),
        ({"hidden_size": 0}, ConfigError, "hidden_size is 0"),
        ({"num_key_value_heads": 3}, ConfigError, "not a multiple of num_key_value_heads 3"),
        ({"hidden_act": "gelu"}, ConfigError, "hidden_act is 'gelu'"),
        ({"intermediate_size": 512}, FormatError, "mlp.gate_proj has shape"),
        ({"vocab_size": 600}, FormatError, "embed_tokens.weight has shape"),
        ({"num_hidden_layers": 3}, FormatError, "holds no tensor model.layers.2"),
        ({"attention_bias": True}, FormatError, "q_proj.bias"),
    ],
)
def test_a_config_that_disagrees_with_its_weights_is_refused(folders, overrides, failure, said):
    with pytest.raises(failure, match=said):
        build_model(folders("llama-3"), ModelBuild(config=ModelConfig(hf_overrides=overrides)))


def test_a_bias_on_disk_is_used_even_where_the_config_is_silent(tmp_path):
    """First InternLM and Qwen releases: tensors, not the config, tell."""
    folder = write_tiny(tmp_path, Tiny("llama", overrides={"attention_bias": True}))
    config = ModelConfig(hf_overrides={"attention_bias": False})
    silent = build_model(folder, ModelBuild(config=config))
    with torch.inference_mode():
        assert error(in_chunks(silent, IDS, 90), reference(folder)(IDS[None]).logits[0]) < 1e-4
