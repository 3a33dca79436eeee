"""The training model, its export and its loop, against transformers and against the package's own model code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from demo import data, export, heldout, train
from demo.checkpoint import DELIVERY, STATE, TOKENIZER, Trained, deliver, load_delivery
from demo.checkpoint import REPORT as REPORT_FILE
from demo.generate import Limits, answers
from demo.measure import measure, prompt_text, table
from demo.model import Batch, Collect, DemoModel, Spread
from demo.muon import orthogonalize
from safetensors.torch import load_file
from tests.support.demo_tiny import ARCH, random_model, tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tokenmill.errors import FormatError
from tokenmill.eval.tasks.demo_sets import GOALS, load_items

REPORT: dict[str, Any] = {
    "training": {"step": 1, "tokens": 1000, "spent_s": 60.0, "torch": "2", "machine": "none"},
    "parameters": ARCH.parameters_on_disk,
    "heldout": {name: {"right": 1, "ended": 2, "of": 4, "share": 0.25, "goal": goal} for name, goal in GOALS.items()},
}


def rounded_model() -> DemoModel:
    """Weights that bf16 holds exactly, so that the folder differs from the model in form alone."""
    model = random_model()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "model"
    report = REPORT | {"architecture": {f: getattr(ARCH, f) for f in ARCH.__dataclass_fields__}}
    export.write_folder(export.folder_files(Trained(rounded_model()), tokenizer(), report), path)
    return path


def as_llama(folder: Path) -> LlamaForCausalLM:
    """transformers' Llama of an InternLM2 folder: wqkv taken apart by kv head, names changed, nothing else."""
    c = json.loads((folder / "config.json").read_text())
    heads, kv_heads, layers = (c[f"num_{k}"] for k in ("attention_heads", "key_value_heads", "hidden_layers"))
    settings = ("vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps", "max_position_embeddings")
    model = LlamaForCausalLM(
        LlamaConfig(
            **{k: c[k] for k in settings}, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]},
            tie_word_embeddings=False,
        )
    ).float().eval()  # fmt: skip
    renamed = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.endswith("wqkv.weight"):
            size = c["hidden_size"] // heads
            parts = value.view(kv_heads, heads // kv_heads + 2, size, -1)
            split = {"q": parts[:, :-2], "k": parts[:, -2], "v": parts[:, -1]}
            base = name.replace("attention.wqkv.weight", "self_attn.")
            renamed |= {f"{base}{k}_proj.weight": v.reshape(-1, value.shape[1]).float() for k, v in split.items()}
            continue
        for old, new in LLAMA_NAMES.items():
            name = name.replace(old, new)
        renamed[name] = value.float()
    assert not model.load_state_dict(renamed, strict=True).missing_keys
    return model


LLAMA_NAMES = {
    "tok_embeddings": "embed_tokens", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj", "output": "lm_head",
}  # fmt: skip


def batch_of(lengths: list[int], groups: int) -> tuple[Batch, list[Tensor]]:
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, ARCH.vocab, (n,), generator=draw) for n in lengths]
    samples = [data.Encoded(i.numpy(), torch.ones(len(i)).bool().numpy()) for i in ids]
    for s in samples:
        s.learn[-1] = False
    return data.pack(samples, groups), sorted(ids, key=len)


@torch.no_grad()
def test_training_model_equals_transformers(folder: Path) -> None:
    """Packed in groups with padding against every sample alone through the exported folder."""
    batch, ids = batch_of([5, 17, 3, 40, 9], groups=2)
    model = rounded_model()
    mine = functional.linear(model(batch), model.head).split([len(i) for i in ids])
    llama = as_llama(folder)
    for logits, sample in zip(mine, ids, strict=True):
        expected = llama(sample[None]).logits[0]
        assert expected.std() > 0.5
        assert (logits - expected).abs().max() < 1e-4


def test_losses_are_of_the_next_token() -> None:
    batch, _ = batch_of([6, 11], groups=1)
    model = random_model()
    logits = functional.linear(model(batch), model.head)
    # The last position of a sample learns nothing: its next token is another sample's first.
    learnt = [*range(5), *range(6, 16)]
    expected = functional.cross_entropy(logits[learnt], batch.tokens[[i + 1 for i in learnt]], reduction="none")
    assert torch.allclose(model.losses(batch), expected, atol=1e-5)


def test_greedy_answers_equal_transformers(folder: Path) -> None:
    """Left-padded batches with a cache against transformers' generate, one prompt at a time."""
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, ARCH.vocab, (n,), generator=draw).tolist() for n in (4, 31, 12)]
    found = answers(rounded_model(), prompts, Limits(frozenset({2}), 12, batch=2))
    llama = as_llama(folder)
    for prompt, (ids, ended) in zip(prompts, found, strict=True):
        out = llama.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=2)
        expected = out[0, len(prompt) :].tolist()
        assert ended == (2 in expected)
        assert ids == [i for i in expected if i != 2]


def test_answers_end_at_a_stop() -> None:
    prompt = [5, 6, 7, 8]
    (ids, ended), = answers(rounded_model(), [prompt], Limits(frozenset(), 10))
    assert (len(ids), ended) == (10, False)
    stop = ids[4]
    assert answers(rounded_model(), [prompt], Limits(frozenset({stop}), 10)) == [(ids[: ids.index(stop)], True)]


def test_folder_loads_in_transformers_tokenizer(folder: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    item = next(i for i in heldout.items(per_set=1) if i.set == "arithmetic")
    text = loaded.apply_chat_template(item.messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>" + prompt_text(item)
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer().encode(text, add_special_tokens=False).ids
    assert loaded.decode(ids) == text
    assert loaded("hi")["input_ids"][0] == loaded.bos_token_id == 1
    assert (loaded.eos_token, loaded.pad_token, loaded.unk_token) == ("</s>", "</s>", "<unk>")


def test_folder_is_internlm2(folder: Path) -> None:
    from tokenmill.models.spec import read_spec

    spec = read_spec(folder)
    assert (spec.family, spec.num_layers) == ("internlm2", 2)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (4, 2, 64)
    tensors = load_file(folder / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert sum(t.numel() for t in tensors.values()) == ARCH.parameters_on_disk
    assert len(tensors) == 7 * ARCH.layers + 3
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, tokenizer().token_to_id("<|im_end|>")]


def test_manifest_is_of_every_file(folder: Path) -> None:
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(listed) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    for name, facts in listed.items():
        content = (folder / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert len(load_items(folder / "heldout.jsonl.gz")) == heldout.PER_SET * len(GOALS)


def test_a_failed_export_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    export.write_folder({"a.txt": b"old"}, target)
    with pytest.raises(TypeError):
        export.write_folder({"a.txt": b"new", "b.txt": "no bytes"}, target)  # type: ignore[dict-item]
    assert (target / "a.txt").read_bytes() == b"old"
    export.write_folder({"a.txt": b"newer"}, target)
    assert (target / "a.txt").read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_too_large_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(SystemExit, match="above the limit of 1000"):
        export.folder_files(Trained(rounded_model()), tokenizer(), REPORT)


def test_delivery_round_trip(tmp_path: Path) -> None:
    model = rounded_model()
    deliver(model, {"step": 3}, tmp_path)
    found = load_delivery(tmp_path / DELIVERY)
    assert (found.facts, found.model.arch) == ({"step": 3}, ARCH)
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_orthogonalize_brings_singular_values_near_one() -> None:
    draw = torch.Generator().manual_seed(0)
    for shape in ((2, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=draw)))
        assert values.min() > 0.6 and values.max() < 1.3


def test_learning_rate_ends_at_zero() -> None:
    preset = train.PRESETS["full"]
    assert train.lr_factor(0.5 * preset.warmup_frac, preset) < 0.7
    assert train.lr_factor(preset.hold_frac, preset) == 1.0
    assert train.lr_factor(1.0, preset) == train.lr_factor(1.2, preset) == 0.0
    assert 0.45 < train.lr_factor((1 + preset.hold_frac) / 2, preset) < 0.55


def test_presets_fit_the_folder() -> None:
    for preset in train.PRESETS.values():
        a = preset.arch
        assert a.hidden % 128 == 0 and a.ffn % 128 == 0 and a.hidden == a.heads * a.head_dim
        assert 2 * a.parameters_on_disk < export.MAX_WEIGHT_BYTES


def test_training_goes_down_and_goes_on(tmp_path: Path) -> None:
    """A few steps lower the loss; a state restores weights, momenta and progress; a delivery lies beside it."""
    preset = train.PRESETS["micro"]
    run = train.make_run(preset, torch.device("cpu"), 1)
    tokenizer().save(str(tmp_path / TOKENIZER))
    batches = iter(train.Batches(tokenizer().to_str(), preset, 1))
    first, second = (Batch.from_wire(next(batches), run.device) for _ in range(2))
    losses = [train.train_step(run, first, 1.0).item() for _ in range(8)]
    assert losses[-1] < losses[0] - 1
    run.step, run.spent_s = 8, 4.0
    train.keep(run, train.Folders(tmp_path, tmp_path))
    other = train.make_run(preset, torch.device("cpu"), 2)
    train.load_state(other, tmp_path)
    assert (other.step, other.spent_s) == (8, 4.0)
    assert train.train_step(other, second, 0.5).item() == train.train_step(run, second, 0.5).item()
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), other.model.parameters(), strict=True))
    assert {p.name for p in tmp_path.iterdir()} == {TOKENIZER, STATE, DELIVERY}
    wrong = train.make_run(train.PRESETS["cpu"], torch.device("cpu"), 1)
    with pytest.raises(SystemExit, match="name another --out"):
        train.load_state(wrong, tmp_path)


def test_fit_spends_its_budget(tmp_path: Path) -> None:
    preset = train.replace(train.PRESETS["micro"], minutes=0.02)
    run = train.make_run(preset, torch.device("cpu"), 1)
    batches = iter(train.Batches(tokenizer().to_str(), preset, 1))
    train.fit(run, batches, {}, train.Folders(tmp_path, tmp_path))
    assert run.spent_s >= 1.2 and run.step >= 1
    assert load_delivery(tmp_path / DELIVERY).facts["step"] == run.step


def test_measure_counts_every_item() -> None:
    items = list(heldout.items(per_set=2))
    model = random_model(train.PRESETS["micro"].arch)
    results = measure(model, tokenizer(), items, keep=1)
    assert [(r.set, r.total) for r in results] == [(name, 2) for name in GOALS]
    assert all(r.right <= r.ended for r in results), "a cut answer is never right"
    assert all(name in table(results) for name in GOALS)


def test_export_measures_only_what_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = {f: getattr(ARCH, f) for f in ARCH.__dataclass_fields__}
    deliver(rounded_model(), REPORT["training"], tmp_path)
    tokenizer().save(str(tmp_path / TOKENIZER))
    asked: list[int] = []

    def measured(folder: Path, trained: Trained) -> dict[str, Any]:
        asked.append(trained.facts["step"])
        return REPORT | {"architecture": architecture, "training": trained.facts}

    monkeypatch.setattr(export, "finish", measured)
    for step, times in ((1, 0), (2, 1)):
        report = REPORT | {"architecture": architecture, "training": REPORT["training"] | {"step": step}}
        (tmp_path / REPORT_FILE).write_text(json.dumps(report))
        export.export(tmp_path, tmp_path / "model")
        assert len(asked) == times
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| tools | 1 of 4 | 25.0% | 95% | 50.0% |" in card


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="train first"):
        export.export(tmp_path, tmp_path / "model")
    with pytest.raises(FormatError):
        load_items(tmp_path / "none.gz")


def test_gradients_through_packing_are_those_of_indexing():
    """Places of three tokens in two groups, with padding; in fp64 against what autograd makes of plain indexing."""
    index, flat = torch.tensor([2, 3, 3, 0, 1, 3]), torch.tensor([3, 4, 0])
    given, placed = (torch.randn(n, 2, 5, dtype=torch.float64, requires_grad=True) for n in (3, 6))
    for own, plain, source in (
        (Spread.apply, lambda x: functional.pad(x, (0, 0, 0, 0, 0, 1))[index], given),
        (Collect.apply, lambda x: x[flat], placed),
    ):
        ours, theirs = own(source, index, flat), plain(source)
        assert torch.equal(ours, theirs)
        weight = torch.arange(ours.numel(), dtype=torch.float64).view(ours.shape)
        grads = [torch.autograd.grad((out * weight).sum(), source)[0] for out in (ours, theirs)]
        assert torch.equal(*grads)


def test_no_plan_is_built_for_every_shape():
    """cuDNN's attention would, in every batch of another shape."""
    assert not torch.backends.cuda.cudnn_sdp_enabled()
