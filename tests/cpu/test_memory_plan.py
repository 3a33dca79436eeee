"""The memory plan from config dicts alone, against closed forms, and the flags that its refusals name."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tokenmill.config import (
    CacheConfig,
    DeviceFacts,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
)
from tokenmill.errors import CapacityError, ConfigError
from tokenmill.kv.layout import kind_names, load_kind
from tokenmill.models.contract import ModelSpec
from tokenmill.models.spec import read_spec
from tokenmill.models.tiny import make_tiny
from tokenmill.runner import memory, runner
from tokenmill.runner.plan import GIB, MemoryPlan, PlanRequest, format_plan, memory_plan, require_tokens
from tokenmill.runner.runner import make_runner

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "float16", "tie_word_embeddings": False,
}
SHAPES = {
    "7B": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "70B": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


def spec_of(size: str) -> ModelSpec:
    return read_spec({**LLAMA, **SHAPES[size]})


def plan_of(size: str, gib: int, **more: object) -> MemoryPlan:
    spec = spec_of(size)
    kv = {name: load_kind(name).bytes_per_token(spec.num_kv_heads, spec.head_dim, 2) for name in kind_names()}
    return memory_plan(spec, kv, PlanRequest(gib * GIB, **more))


@pytest.mark.parametrize(("size", "params"), [("7B", 6_738_415_616), ("70B", 68_976_648_192)])
def test_parameters_are_the_published_ones(size, params):
    spec = spec_of(size)
    assert spec.linear_params + spec.other_params == params


@pytest.mark.parametrize(("size", "gibs"), [("7B", (8, 32, 128)), ("70B", (5, 20, 80))])
def test_kv_bytes_at_batch_8(size, gibs):
    plan = plan_of(size, 80)
    plain, half = plan.row("fp16", "auto"), plan.row("fp16", "int8")
    assert [plain.at(context).kv_bytes / GIB for context in (2048, 8192, 32768)] == list(gibs)
    for context in (2048, 8192, 32768):
        assert 0.5 <= half.at(context).kv_bytes / plain.at(context).kv_bytes < 0.53


def test_what_fits():
    assert plan_of("7B", 24).row("w4", "int8").at(8192).fits
    assert plan_of("70B", 80).row("w4", "int8").at(32768).fits
    plain = plan_of("70B", 80).row("fp16", "auto")
    assert not any(verdict.fits for verdict in plain.verdicts)
    assert (plain.tokens, plain.at(2048).batch) == (0, 0)


def test_weights_shrink_with_their_format_and_with_ranks():
    whole, shared = plan_of("70B", 80), plan_of("70B", 80, tp=4)
    sizes = [whole.row(name, "auto").weight_bytes for name in ("fp16", "w8", "w4")]
    assert sizes[0] == 2 * 68_976_648_192
    assert sizes == sorted(sizes, reverse=True)
    assert shared.row("fp16", "auto").weight_bytes * 4 == pytest.approx(sizes[0], abs=4)
    assert whole.fp32_weight_bytes == 2 * sizes[0]


@pytest.mark.parametrize("size", SHAPES)
def test_every_verdict_holds_when_it_is_followed(size):
    """The share it names holds the batch, a hundredth less does not; the batch it names fits, one more does not."""
    for gib in (16, 24, 48, 80, 141):
        plan = plan_of(size, gib)
        for row in plan.rows:
            for verdict in row.verdicts:
                follow(plan, row.token_bytes, verdict.context, size, gib, (row.weights, row.kv))


def follow(plan: MemoryPlan, token_bytes: int, context: int, size: str, gib: int, key: tuple[str, str]) -> None:
    verdict = plan.row(*key).at(context)
    if verdict.frac is not None:
        at_share = plan_of(size, gib, memory_frac=verdict.frac).row(*key)
        assert at_share.tokens >= 8 * context
        if verdict.frac > 0.01:
            assert plan_of(size, gib, memory_frac=verdict.frac - 0.0101).row(*key).tokens < 8 * context
    elif verdict.batch:
        assert plan_of(size, gib, batch=verdict.batch).row(*key).at(context).fits
        assert not plan_of(size, gib, batch=verdict.batch + 1).row(*key).at(context).fits


def test_the_table_names_flags_and_holds_every_row():
    text = format_plan(plan_of("7B", 24))
    assert len(text.splitlines()) == 2 + 4 * len(kind_names()) + 2
    row = next(line for line in text.splitlines() if re.match(r"w4 +int8 ", line))
    assert re.search(r"4.12 GiB fits +16.50 GiB 0.89 +66.00 GiB no, 2 fit$", row)
    assert "--cache-max-entry-count" in text
    assert "plain weights take 25.10 GiB" in text


# ---------------------------------------------------------------- what refusals say


@pytest.mark.parametrize("free_gib", [0.5, 2, 7])
def test_the_share_that_a_refusal_names_is_enough(free_gib):
    free, per_token = int(free_gib * GIB), 1 << 19
    wanted = int(free * 0.9) // per_token
    with pytest.raises(CapacityError, match="--cache-max-entry-count") as caught:
        require_tokens(int(free * 0.5) // per_token, wanted, per_token, free, 0.5)
    share = float(re.search(r"entry-count (\S+)", str(caught.value))[1])
    require_tokens(int(free * share) // per_token, wanted, per_token, free, share)


def test_the_length_that_a_refusal_names_is_the_longest():
    with pytest.raises(CapacityError, match=r"--session-len (\d+)") as caught:
        require_tokens(100, 10_000, 1000, 1_000_000, 0.1)
    assert int(re.search(r"--session-len (\d+)", str(caught.value))[1]) == 980


def resolved(cache: CacheConfig, wanted: int | None) -> EngineConfig:
    return EngineConfig(
        ModelConfig("x", "float32", max_model_tokens=wanted), cache, SchedulerConfig(4, 64),
        kernels=KernelConfig("cuda"),
    )


def groups_of(config: EngineConfig, free: int) -> tuple[int, int | None]:
    """(tokens in the cache, context) that memory.size_groups decides for the 7B shape."""
    spec = spec_of("7B")
    need = memory.cache_need(config, spec, load_kind("auto"), 1)
    groups, fitted = memory.size_groups(config, need, free)
    return groups[0].num_blocks * groups[0].block_tokens, fitted.model.max_model_tokens


def test_a_context_nobody_asked_for_is_shortened():
    tokens, context = groups_of(resolved(CacheConfig(block_tokens=16), 4096), 2 * GIB)
    assert tokens == context == int(2 * GIB * 0.8) // (1 << 20) // 16 * 16


def test_a_context_that_was_asked_for_is_refused_with_the_flag_that_fits():
    config = resolved(CacheConfig(block_tokens=16, memory_frac=0.5), 2048)
    with pytest.raises(CapacityError, match="--cache-max-entry-count") as caught:
        groups_of(config, int(2.4 * GIB))
    share = float(re.search(r"entry-count (\S+)", str(caught.value))[1])
    again = replace(config, cache=replace(config.cache, memory_frac=share))
    assert groups_of(again, int(2.4 * GIB))[1] == 2048


def test_blocks_that_hold_no_whole_sequence_are_refused(tmp_path):
    folder = make_tiny("llama", tmp_path)
    config = EngineConfig(
        ModelConfig(str(folder), max_model_tokens=200), CacheConfig(num_blocks=4), kernels=KernelConfig("cpu")
    )
    with pytest.raises(CapacityError, match=r"holds 64 tokens .* 200: give it 13 blocks .* --session-len 64"):
        make_runner(config)
    for fixed in (
        replace(config, cache=CacheConfig(num_blocks=13)),
        replace(config, model=ModelConfig(str(folder), max_model_tokens=64)),
    ):
        make_runner(fixed).close()


def test_cached_files_of_a_control_group_are_free(tmp_path, monkeypatch):
    """The kernel counts them as used, and drops them when memory is wanted."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    whole = memory.free_bytes(torch.device("cpu"))
    assert whole > 64 << 20
    for name, text in {"memory.max": "max\n", "memory.current": f"{50 << 20}\n",
                       "memory.stat": f"anon {10 << 20}\ninactive_file {30 << 20}\nactive_file {9 << 20}\n"}.items():
        (tmp_path / name).write_text(text)
    assert memory.free_bytes(torch.device("cpu")) > 64 << 20, "no limit"
    (tmp_path / "memory.max").write_text(f"{60 << 20}\n")
    assert memory.free_bytes(torch.device("cpu")) == (60 - 50 + 30 + 9) << 20
    (tmp_path / "memory.max").write_text(f"{1 << 20}\n")
    assert memory.free_bytes(torch.device("cpu")) == 0


def test_what_a_runner_says_of_itself(tmp_path):
    """Weights in bytes by the closed form; phases, cache and context as the configuration has them."""
    folder = make_tiny("llama", tmp_path)
    cache, kernels = CacheConfig(num_blocks=32), KernelConfig("cpu")
    made = make_runner(EngineConfig(ModelConfig(str(folder)), cache, kernels=kernels))
    told, spec = made.control("describe"), read_spec(folder)
    made.close()
    # The rotation's frequencies are all that is held beside the parameters.
    assert 0 <= told["weights_bytes"] - 4 * (spec.linear_params + spec.other_params) <= 4 * spec.head_dim
    assert told["kv_bytes"] == 32 * 16 * told["token_bytes"]
    assert told["token_bytes"] == 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 4
    assert (told["tokens"], told["max_model_tokens"], told["sequences"]) == (512, 256, {"256": 2})
    assert set(told["phases_s"]) == {"weights", "cache", "graphs"}


@pytest.mark.parametrize(("backend", "step_tokens"), [("reference", 2048), ("triton", 8192)])
def test_steps_are_short_only_where_attention_gathers(monkeypatch, backend, step_tokens):
    """On a GPU that is not here: its facts and the bound ops are stood in for."""
    monkeypatch.setattr(runner, "device_facts", lambda device: DeviceFacts("cuda", 80 * GIB))
    monkeypatch.setattr(runner, "bind", lambda *_: SimpleNamespace(backends={"attention": backend}))
    spec, gpu = spec_of("7B"), torch.device("cuda")
    made = runner.resolve(EngineConfig(ModelConfig("x")), spec, gpu)
    assert (made.scheduler.max_step_tokens, made.model.dtype, made.cache.block_tokens) == (step_tokens, "float16", 64)
    asked = runner.resolve(EngineConfig(ModelConfig("x"), scheduler=SchedulerConfig(max_step_tokens=999)), spec, gpu)
    assert asked.scheduler.max_step_tokens == 999
    need = memory.cache_need(made, spec, load_kind("auto"), 1)
    keys = runner.capture_keys(made, need, runner.gathers(made, gpu))
    assert ((256, 4096) in keys) == (backend == "triton")
    assert runner.gathers(made, torch.device("cpu")) is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    folder = str(make_tiny("llama", tmp_path))
    with pytest.raises(ConfigError, match="no CUDA GPU: use --device cpu"):
        make_runner(EngineConfig(ModelConfig(folder), kernels=KernelConfig("cuda")))
    with pytest.raises(ConfigError, match="use --tp with one of 1, 2, 4"):
        make_runner(EngineConfig(ModelConfig(folder), parallel=ParallelConfig(3)))
