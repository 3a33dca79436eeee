"""Whole runs: what is written is what was measured; an interrupted run goes on, or leaves nothing that loads."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from tests.support.outliers import inject
from tests.support.packed import Packed

from tokenmill.errors import CapacityError, ConfigError, FormatError
from tokenmill.models.build import build_model
from tokenmill.models.tiny import Tiny, make_tiny, write_tiny
from tokenmill.quant import run as room
from tokenmill.quant.job import Job
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.run import quantize_folder
from tokenmill.quant.text import Tokens
from tokenmill.weights.export import verify
from tokenmill.weights.source import open_source


def tokens(samples=3, held=2, length=48, seed=0, distinct=497):
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, 3 + distinct, (samples + held, length), generator=g).tolist()
    windows = tuple(tuple(row) for row in drawn)
    return Tokens(windows[:samples], windows[samples:], "random")


def recipe(method="awq_gptq", **changes):
    return Recipe(method, group=64, ratios=3, search_tokens=64, **changes)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny("llama", tmp_path_factory.mktemp("m") / "llama")


def same_folder(a, b):
    files = sorted(p.name for p in a.iterdir())
    assert files == sorted(p.name for p in b.iterdir())
    for name in files:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def logits(folder, ids):
    model = build_model(folder)
    packed = Packed(model)
    packed.start(0, len(ids))
    return packed.step([(0, list(ids))])[0]


def divergence(p, q):
    p, q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


METHODS = {
    "rtn": recipe("rtn"),
    "awq": recipe("awq"),
    "gptq": recipe("gptq", symmetric=True),
    "gptq 3 bits": recipe("gptq", bits=3),
    "awq+gptq": recipe(),
    "awq+gptq as ct": recipe(to="compressed-tensors"),
    "smoothquant": recipe("smoothquant"),
    "fp8 block": recipe("fp8", block=(32, 64)),
    "fp8 channel": recipe("fp8", fp8="channel"),
    "fp8 tensor": recipe("fp8", fp8="tensor"),
}
WEIGHT_ONLY = [name for name in METHODS if name != "smoothquant" and "fp8" not in name]


@pytest.mark.parametrize("family", ["llama", "internlm2"])
@pytest.mark.parametrize("case", METHODS)
def test_the_folder_is_what_was_measured(tmp_path, case, family):
    """The served model's KL to its source, by the product's own model code, is the one the report states."""
    source = make_tiny(family, tmp_path / "m")
    found = quantize_folder(Job(source, tmp_path / "q", METHODS[case], tokens()))
    verify(tmp_path / "q")
    report = json.loads((tmp_path / "q" / "quantization_report.json").read_text())
    assert report["held_out"]["kl"] == found.quality.kl and found.quality.kl > 0
    if case in WEIGHT_ONLY:
        held = tokens().held
        kl = sum(divergence(logits(source, ids), logits(tmp_path / "q", ids)) for ids in held) / len(held)
        assert kl == pytest.approx(found.quality.kl, rel=2e-3)
    else:
        assert torch.isfinite(logits(tmp_path / "q", tokens().held[0])).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "q"]


def test_the_report_against_transformers(tmp_path, llama):
    """KL, agreement and both perplexities, with the dequantized weights put into transformers' model."""
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    found = quantize_folder(Job(llama, tmp_path / "q", recipe(), tokens())).quality
    plain = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    other = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    source, state = open_source(tmp_path / "q"), other.state_dict()
    for name in state:
        module = name.removesuffix(".weight")
        state[name].copy_(source.tensor(name) if source.has(name) else source.weight(module).dequantize())
    kl = top1 = nll_p = nll_q = 0.0
    held = torch.tensor(tokens().held)
    with torch.no_grad():
        p, q = (torch.log_softmax(m(held).logits, -1) for m in (plain, other))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    top1 = (p.argmax(-1) == q.argmax(-1)).float().mean()
    nll_p, nll_q = (-x[:, :-1].gather(2, held[:, 1:, None]).mean() for x in (p, q))
    assert found.kl == pytest.approx(float(kl), rel=1e-3) and found.top1 == pytest.approx(float(top1), abs=0.011)
    assert found.perplexity_plain == pytest.approx(float(nll_p.exp()), rel=1e-3)
    assert found.perplexity_quantized == pytest.approx(float(nll_q.exp()), rel=1e-3)


def test_better_methods_end_nearer_to_the_source(tmp_path, llama):
    """On text of few words, whose inputs are correlated as those of real text are."""
    kl = {}
    for method in ("rtn", "gptq", "awq_gptq"):
        job = Job(llama, tmp_path / method, Recipe(method, group=64, search_tokens=512), tokens(16, distinct=30))
        kl[method] = quantize_folder(job).quality.kl
    assert kl["gptq"] < 0.9 * kl["rtn"] and kl["awq_gptq"] < 0.9 * kl["rtn"]


def test_outliers_cost_rounding_more_than_they_cost_us(tmp_path):
    """A model with outliers injected computes what it did; rounding then loses far more, scales that move do not."""
    source = make_tiny("llama", tmp_path / "m")
    before = logits(source, tokens().held[0])
    kl = {"clean": quantize_folder(Job(source, tmp_path / "clean", recipe("rtn"), tokens())).quality.kl}
    inject(source, json.loads((source / "config.json").read_text()))
    assert torch.allclose(logits(source, tokens().held[0]), before, atol=2e-3)
    for method in ("rtn", "awq_gptq"):
        job = Job(source, tmp_path / method, Recipe(method, group=64, search_tokens=512), tokens(12))
        kl[method] = quantize_folder(job).quality.kl
    assert kl["rtn"] > 1.5 * kl["clean"] and kl["awq_gptq"] < 0.6 * kl["rtn"], kl


def test_tied_embeddings_and_half_norms(tmp_path):
    overrides = {"tie_word_embeddings": True}
    source = write_tiny(tmp_path / "m", Tiny("llama", dtype=torch.bfloat16, overrides=overrides))
    quantize_folder(Job(source, tmp_path / "q", recipe(), tokens()))
    written = load_file(tmp_path / "q" / "model.safetensors")
    assert "lm_head.weight" not in written
    assert written["model.layers.1.input_layernorm.weight"].dtype == torch.bfloat16
    assert written["model.layers.0.mlp.up_proj.scales"].dtype == torch.float16
    announced = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert announced["quant_method"] == "awq" and announced["modules_to_not_convert"] is None


def test_dtype_is_of_what_stays_plain(tmp_path, llama):
    quantize_folder(Job(llama, tmp_path / "q", recipe("rtn"), tokens(), dtype=torch.float16))
    written = load_file(tmp_path / "q" / "model.safetensors")
    assert {t.dtype for n, t in written.items() if "proj" not in n} == {torch.float16}
    assert json.loads((tmp_path / "q" / "config.json").read_text())["torch_dtype"] == "float16"


class Stopped(Exception):
    pass


@pytest.mark.parametrize("method", ["awq_gptq", "smoothquant"])
def test_resume_equals_an_uninterrupted_run(tmp_path, llama, method):
    quantize_folder(Job(llama, tmp_path / "whole", recipe(method), tokens()))

    def stop(done, total, error):
        if done == 1:
            raise Stopped

    with pytest.raises(Stopped):
        quantize_folder(Job(llama, tmp_path / "q", recipe(method), tokens()), stop)
    assert not (tmp_path / "q").exists() and (tmp_path / "q.resume").exists()
    with pytest.raises(ConfigError, match="begun with another recipe"):
        quantize_folder(Job(llama, tmp_path / "q", recipe("rtn"), tokens(), resume=True))
    with pytest.raises(ConfigError, match="begun with another text"):
        quantize_folder(Job(llama, tmp_path / "q", recipe(method), tokens(seed=1), resume=True))
    seen = []
    job = Job(llama, tmp_path / "q", recipe(method), tokens(), resume=True)
    quantize_folder(job, lambda done, total, error: seen.append(done))
    assert seen == [1, 2]
    same_folder(tmp_path / "q", tmp_path / "whole")
    assert not (tmp_path / "q.resume").exists()


def test_a_finished_block_is_not_made_again(tmp_path, llama, monkeypatch):
    def stop(done, total, error):
        raise Stopped

    with pytest.raises(Stopped):
        quantize_folder(Job(llama, tmp_path / "q", recipe("rtn"), tokens()), stop)
    method = room.load_method("rtn")
    made = []
    real = method.quantize
    monkeypatch.setattr(method, "quantize", lambda *a: made.append(1) or real(*a))
    quantize_folder(Job(llama, tmp_path / "q", recipe("rtn"), tokens(), resume=True))
    assert made == [1]


@pytest.mark.parametrize("after", range(0, 9, 2))
def test_a_full_disk_at_any_point_leaves_nothing_that_loads(tmp_path, llama, monkeypatch, after):
    sync, calls = os.fsync, iter(range(100))

    def full(handle):
        if next(calls) == after:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patched, pytest.raises(CapacityError, match="no room"):
        patched.setattr(os, "fsync", full)
        quantize_folder(Job(llama, tmp_path / "q", recipe("rtn"), tokens()))
    assert [p.name for p in tmp_path.iterdir()] == ["q.resume"]
    for folder in tmp_path.rglob("*"):
        if folder.is_dir():
            with pytest.raises(FormatError):
                open_source(folder)
    quantize_folder(Job(llama, tmp_path / "q", recipe("rtn"), tokens(), resume=True))
    verify(tmp_path / "q")


def test_max_kl_refuses(tmp_path, llama):
    with pytest.raises(ConfigError, match="above --max-kl 1e-06: nothing was written"):
        quantize_folder(Job(llama, tmp_path / "q", recipe("rtn"), tokens(), max_kl=1e-6))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="needs held-out text"):
        quantize_folder(Job(llama, tmp_path / "q", recipe("rtn"), tokens(held=0), max_kl=1.0))


def test_refusals(tmp_path, llama):
    with pytest.raises(ConfigError, match="gptq needs calibration data"):
        quantize_folder(Job(llama, tmp_path / "q", recipe("gptq"), tokens(samples=0)))
    other = make_tiny("internlm2", tmp_path / "m")
    with pytest.raises(ConfigError, match="cut heads of 32: use --block-size 32"):
        quantize_folder(Job(other, tmp_path / "q", recipe("fp8"), tokens()))
    with pytest.raises(ConfigError, match="groups of 96"):
        quantize_folder(Job(llama, tmp_path / "q", Recipe("rtn", group=96), tokens()))
    with pytest.raises(FormatError, match=r"model.layers.0.self_attn.q_proj: AWQ holds 4-bit"):
        quantize_folder(Job(llama, tmp_path / "q", Recipe("rtn", bits=8, to="awq"), tokens()))
    wrong = Tokens(((1, 600),), (), "npy")
    with pytest.raises(FormatError, match="600 is outside the vocabulary of 512"):
        quantize_folder(Job(llama, tmp_path / "q", recipe(), wrong))
    assert not (tmp_path / "q").exists()


def test_a_quantized_source_is_quantized_again(tmp_path, llama):
    quantize_folder(Job(llama, tmp_path / "fp8", recipe("fp8", block=(64, 64)), tokens()))
    quantize_folder(Job(tmp_path / "fp8", tmp_path / "awq", recipe(), tokens()))
    names = load_file(tmp_path / "awq" / "model.safetensors").keys()
    assert not any("weight_scale_inv" in name for name in names)
    verify(tmp_path / "awq")


def test_a_damaged_source_names_the_layer(tmp_path):
    source = make_tiny("llama", tmp_path / "m")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    from safetensors.torch import save_file

    save_file(tensors, source / "model.safetensors")
    with pytest.raises(FormatError, match=r"model.layers.1.mlp.up_proj holds NaN"):
        quantize_folder(Job(source, tmp_path / "q", recipe("rtn"), tokens()))
