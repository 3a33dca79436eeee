"""config.ini of the first generation: written as its documentation shows, read with its own meanings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenmill.api import workspace
from tokenmill.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from tokenmill.errors import ConfigError, FormatError

# The whole file that a tutorial prints for internlm-chat-7b, by key.
INTERNLM_7B = {
    "model_name": "internlm-chat-7b", "tensor_para_size": "1", "head_num": "32", "kv_head_num": "32",
    "vocab_size": "103168", "num_layer": "32", "inter_size": "11008", "norm_eps": "1e-06", "attn_bias": "1",
    "start_id": "1", "end_id": "2", "session_len": "2056", "weight_type": "fp16", "rotary_embedding": "128",
    "rope_theta": "10000.0", "size_per_head": "128", "group_size": "0", "max_batch_size": "64",
    "max_context_token_num": "1", "step_length": "1", "cache_max_entry_count": "0.5", "cache_block_seq_len": "128",
    "cache_chunk_size": "1", "use_context_fmha": "1", "quant_policy": "0", "max_position_embeddings": "2048",
    "rope_scaling_factor": "0.0", "use_logn_attn": "0",
}  # fmt: skip
CONFIG = {
    "architectures": ["InternLMForCausalLM"], "hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 103168,
    "num_hidden_layers": 32, "intermediate_size": 11008, "rms_norm_eps": 1e-06, "bias": True, "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    files = {"config.json": json.dumps(CONFIG), "model.safetensors": "w", "tokenizer.model": "t",
             "modeling_internlm.py": "raise SystemExit", "tokenizer_config.json": "{}"}  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def made(model: Path, name: str = "internlm-chat-7b") -> Path:
    return workspace.make_workspace(name, model, model.parent / "workspace")


def test_a_new_file_is_the_tutorial_s(model: Path) -> None:
    folder = made(model)
    assert workspace.read_ini(folder / workspace.WEIGHTS / "config.ini") == INTERNLM_7B
    assert {f.name for f in (folder / workspace.TOKENIZER).iterdir()} == {"tokenizer.model", "tokenizer_config.json"}
    assert [f.name for f in folder.rglob("*.py")] == ["model.py"] and not list(model.parent.glob("*.partial"))


def unfolded(folder: Path, changes: dict[str, str], config: EngineConfig | None = None) -> EngineConfig:
    """The configuration of a workspace whose config.ini was edited; None takes a key away."""
    file = folder / workspace.WEIGHTS / "config.ini"
    said = {**workspace.read_ini(file), **changes}
    file.write_text("[llama]\n" + "".join(f"{k} = {v}\n" for k, v in said.items() if v != "-"))
    config = config or EngineConfig()
    found, name = workspace.unfold(EngineConfig(ModelConfig(str(folder)), config.cache, config.scheduler))
    assert name == "internlm-chat-7b" and found.model.path == str(folder / workspace.WEIGHTS)
    return found


def test_the_defaults_of_its_time(model: Path) -> None:
    found = unfolded(made(model), {})
    model_said = found.model
    assert (model_said.max_model_tokens, model_said.use_logn_attn, model_said.rope_scaling_factor) == (2048, False, 0)
    assert (found.cache.kv, found.cache.memory_frac, found.cache.block_tokens) == ("auto", 0.5, 128)
    assert (found.scheduler.max_rows, found.scheduler.max_step_tokens, found.parallel.tp) == (64, 2048, 1)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"quant_policy": "4"}, "cache.kv", "int8"),
        ({"quant_policy": "8"}, "cache.kv", "int8"),
        ({"rope_scaling_factor": "1.0"}, "model.rope_scaling_factor", 1.0),
        ({"rope_scaling_factor": "0.5"}, "model.rope_scaling_factor", 0.0),
        ({"use_logn_attn": "1"}, "model.use_logn_attn", True),
        ({"max_batch_size": "8"}, "scheduler.max_rows", 8),
        ({"session_len": "8200"}, "model.max_model_tokens", 8200),
        ({"cache_max_entry_count": "300"}, "cache.num_blocks", 300),
        ({"max_context_token_num": "4000"}, "scheduler.max_step_tokens", 4000),
        # Version 1.0 counted sequences: 48 of 2048 tokens in blocks of 64.
        ({"use_dynamic_ntk": "0", "cache_block_seq_len": "-", "cache_max_entry_count": "48"}, "cache.num_blocks", 1536),
        ({"use_dynamic_ntk": "0", "cache_block_seq_len": "-", "cache_max_entry_count": "48"}, "cache.block_tokens", 64),
    ],
)
def test_edits_have_their_old_meaning(model: Path, changes: dict[str, str], field: str, value: object) -> None:
    part, name = field.split(".")
    assert getattr(getattr(unfolded(made(model), changes), part), name) == value


def test_the_command_line_goes_before_the_file(model: Path) -> None:
    asked = EngineConfig(cache=CacheConfig(kv="int4"), scheduler=SchedulerConfig(max_rows=3))
    found = unfolded(made(model), {"quant_policy": "4"}, asked)
    assert (found.cache.kv, found.scheduler.max_rows) == ("int4", 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no section", "cannot be read"),
        ("[a]\n[b]\n", "sections a, b"),
        ("[llama]\nquant_policy = 5\n", "quant_policy"),
        ("[llama]\nsession_len = long\n", "session_len is 'long'"),
        ("[llama]\nmax_batch_size = -1\n", "max_batch_size"),
        ("[llama]\nmodel_name = %(x)s\nmax_batch_size = nan\n", "max_batch_size"),
    ],
)  # fmt: skip
def test_a_broken_file_is_told(model: Path, text: str, told: str) -> None:
    folder = made(model)
    (folder / workspace.WEIGHTS / "config.ini").write_text(text)
    with pytest.raises(FormatError, match=told):
        workspace.unfold(EngineConfig(ModelConfig(str(folder))))


def test_raw_weights_of_the_old_converter_are_told(model: Path) -> None:
    folder = made(model)
    (folder / workspace.WEIGHTS / "config.json").unlink()
    with pytest.raises(FormatError, match="tokenmill convert NAME FOLDER"):
        workspace.unfold(EngineConfig(ModelConfig(str(folder))))


def test_any_other_path_is_left_alone(model: Path) -> None:
    config = EngineConfig(ModelConfig(str(model)))
    assert workspace.unfold(config, "n") == (config, "n")


def test_only_our_own_workspace_is_replaced(model: Path) -> None:
    folder = made(model)
    assert workspace.read_ini(made(model, "other") / workspace.WEIGHTS / "config.ini")["model_name"] == "other"
    (folder / workspace.MARK).unlink()
    with pytest.raises(ConfigError, match="is kept"):
        made(model)
    assert (folder / workspace.WEIGHTS / "config.ini").is_file()


def test_a_workspace_of_a_workspace_leaves_the_first_alone(model: Path) -> None:
    """Files are linked: its config.ini must not be written through the link."""
    first = made(model) / workspace.WEIGHTS
    (first / "config.ini").write_text("[llama]\nmodel_name = mine\n")
    second = workspace.make_workspace("second", first, model.parent / "other")
    assert (first / "config.ini").read_text() == "[llama]\nmodel_name = mine\n"
    assert workspace.read_ini(second / workspace.WEIGHTS / "config.ini")["model_name"] == "second"


def test_a_failure_leaves_the_old_one(model: Path) -> None:
    folder = made(model)
    (model / "config.json").unlink()
    (model / "config.json").write_text("{}")
    with pytest.raises(FormatError, match="num_attention_heads"):
        made(model)
    assert workspace.read_ini(folder / workspace.WEIGHTS / "config.ini") == INTERNLM_7B
    assert sorted(f.name for f in model.parent.iterdir()) == ["model", "workspace"]
    with pytest.raises(ConfigError, match="can be served"):
        made(model, "../x")
