"""LMDeploy's Python surface, a row for a row: every field with its default, every bound, every method."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.cpu.test_pipeline import Opened, opened

import tokenmill
from tokenmill.api import messages
from tokenmill.api.configs import (
    ChatTemplateConfig,
    GenerationConfig,
    PytorchEngineConfig,
    QuantPolicy,
    TurbomindEngineConfig,
)
from tokenmill.api.rows import Rows
from tokenmill.api.tokenizer import DetokenizeState, Tokenizer
from tokenmill.errors import ConfigError, FormatError
from tokenmill.models.tiny import make_tiny
from tokenmill.types import Chunk, RawArray, Usage

GENERATION = {
    "n": 1, "max_new_tokens": 512, "do_sample": False, "top_p": 1.0, "top_k": 50, "min_p": 0.0, "temperature": 0.8,
    "repetition_penalty": 1.0, "ignore_eos": False, "random_seed": None, "stop_words": None, "bad_words": None,
    "stop_token_ids": None, "bad_token_ids": None, "min_new_tokens": None, "skip_special_tokens": True,
    "spaces_between_special_tokens": True, "logprobs": None, "response_format": None, "logits_processors": None,
    "output_logits": None, "output_last_hidden_state": None, "include_stop_str_in_output": False, "return_ppl": False,
    "with_cache": False, "preserve_cache": False, "migration_request": None, "return_routed_experts": False,
    "repetition_ngram_size": 0, "repetition_ngram_threshold": 0,
}  # fmt: skip
TURBOMIND = {
    "dtype": "auto", "model_format": None, "tp": 1, "dp": 1, "cp": 1, "ep": 1, "device_num": None, "attn_tp_size": None,
    "attn_cp_size": None, "attn_dp_size": None, "mlp_tp_size": None, "mlp_dp_size": None, "outer_dp_size": None,
    "nnodes": 1, "node_rank": 0, "dist_init_addr": None, "devices": None, "session_len": None, "max_batch_size": None,
    "cache_max_entry_count": 0.8, "cache_chunk_size": -1, "cache_block_seq_len": 64, "enable_prefix_caching": False,
    "cache_checkpoint_interval": 4096, "cache_prompt": "auto", "cache_prompt_boundary_skip": 1,
    "cache_generation": "auto", "quant_policy": 0, "rope_scaling_factor": 0.0, "use_logn_attn": False,
    "download_dir": None, "revision": None, "max_prefill_token_num": 8192, "num_tokens_per_iter": 0,
    "max_prefill_iters": 1, "async_": 1, "empty_init": False, "language_model_only": False, "communicator": "nccl",
    "hf_overrides": None, "enable_metrics": True, "model_name": None,
}  # fmt: skip
PYTORCH = {
    "dtype": "auto", "tp": 1, "dp": 1, "dp_rank": 0, "ep": 1, "session_len": None, "max_batch_size": None,
    "attn_tp_size": None, "mlp_tp_size": None, "moe_tp_size": None, "cache_max_entry_count": 0.8,
    "prefill_interval": 16, "block_size": 64, "kernel_block_size": -1, "num_cpu_blocks": 0, "num_gpu_blocks": 0,
    "adapters": None, "max_prefill_token_num": 8192, "cudagraph_capture_batch_sizes": None, "thread_safe": False,
    "eager_mode": False, "enable_prefix_caching": False, "prefix_cache_state_budget": 0,
    "prefix_cache_decode_state_interval": 0, "device_type": "cuda", "custom_module_map": None, "quant_policy": 0,
    "distributed_executor_backend": None, "enable_mp_engine": False, "mp_engine_backend": "mp", "empty_init": False,
    "enable_microbatch": False, "enable_eplb": False, "model_format": None, "enable_metrics": True,
    "hf_overrides": None, "language_model_only": False, "logprobs_mode": None, "enable_return_routed_experts": False,
    "enable_transfer_obj_ref": False, "dllm_block_length": None,
    "dllm_unmasking_strategy": "low_confidence_dynamic", "dllm_denoising_steps": None,
    "dllm_confidence_threshold": 0.85, "role": "Hybrid", "migration_backend": "DLSlime", "download_dir": None,
    "revision": None, "eviction_type": "recompute",
}  # fmt: skip
TEMPLATE = dict.fromkeys(
    ("model_name", "model_path", "system", "meta_instruction", "eosys", "user", "eoh", "assistant", "eoa", "tool",
     "eotool", "separator", "capability", "stop_words")
)  # fmt: skip
RESPONSE = {
    "text": "", "generate_token_len": 0, "input_token_len": 0, "finish_reason": None, "token_ids": [],
    "logprobs": None, "logits": None, "last_hidden_state": None, "index": 0, "routed_experts": None,
    "cached_tokens": 0, "error_code": None, "error_message": None,
}  # fmt: skip
RECORDS: list[tuple[type, dict[str, Any]]] = [
    (GenerationConfig, GENERATION), (TurbomindEngineConfig, TURBOMIND), (PytorchEngineConfig, PYTORCH),
    (ChatTemplateConfig, TEMPLATE), (messages.VisionConfig, {"max_batch_size": 1, "thread_safe": False}),
    (tokenmill.Response, RESPONSE),
]  # fmt: skip


@pytest.mark.parametrize(("record", "expected"), RECORDS)
def test_fields_and_defaults(record: type, expected: dict[str, Any]) -> None:
    made = record()
    assert {field.name: getattr(made, field.name) for field in fields(record)} == expected


def test_small_records() -> None:
    assert {p.name: int(p) for p in QuantPolicy} == {
        "NONE": 0, "INT4": 4, "INT8": 8, "FP8": 16, "FP8_E5M2": 17, "TURBO_QUANT": 42,
    }  # fmt: skip
    names = """SUCCESS FINISH ENGINE_STOP_ERROR SESSION_REPEAT SESSION_NOT_EXIST HANDLER_NOT_EXIST INPUT_LENGTH_ERROR
        INTERNAL_ENGINE_ERROR CANCEL PREFIX_CACHE_CONFLICT NO_QUEUE NOT_SUPPORTED OUT_OF_MEMORY"""
    assert [kind.name for kind in messages.ResponseType] == names.split()
    drafts = messages.SpeculativeConfig("eagle")
    assert (drafts.model, drafts.num_speculative_tokens) == ("", 1)
    output = messages.EngineOutput(messages.ResponseType.SUCCESS)
    assert [f.name for f in fields(output)] == [
        "status", "token_ids", "logprobs", "logits", "last_hidden_state", "cache_block_ids", "req_metrics",
        "routed_experts", "ce_loss",
    ]  # fmt: skip


BAD: list[tuple[type, dict[str, Any]]] = [
    (GenerationConfig, {"n": 0}), (GenerationConfig, {"top_p": 1.01}), (GenerationConfig, {"top_k": -1}),
    (GenerationConfig, {"min_p": -0.1}), (GenerationConfig, {"temperature": 2.5}),
    (GenerationConfig, {"repetition_penalty": 0.0}), (GenerationConfig, {"repetition_ngram_size": -1}),
    (TurbomindEngineConfig, {"dtype": "int3"}), (TurbomindEngineConfig, {"tp": 0}), (TurbomindEngineConfig, {"dp": 0}),
    (TurbomindEngineConfig, {"cp": 0}), (TurbomindEngineConfig, {"ep": 0}), (TurbomindEngineConfig, {"async_": 2}),
    (TurbomindEngineConfig, {"cache_max_entry_count": 0}), (TurbomindEngineConfig, {"quant_policy": 16}),
    (TurbomindEngineConfig, {"rope_scaling_factor": -1.0}), (TurbomindEngineConfig, {"cache_prompt": "none"}),
    (TurbomindEngineConfig, {"cache_generation": "some"}), (TurbomindEngineConfig, {"max_prefill_token_num": -1}),
    (TurbomindEngineConfig, {"num_tokens_per_iter": -1}), (TurbomindEngineConfig, {"communicator": "mpi"}),
    (PytorchEngineConfig, {"cache_max_entry_count": 1.0}), (PytorchEngineConfig, {"quant_policy": 3}),
    (PytorchEngineConfig, {"num_cpu_blocks": -1}), (PytorchEngineConfig, {"device_type": "tpu"}),
    (PytorchEngineConfig, {"kernel_block_size": 24}), (PytorchEngineConfig, {"kernel_block_size": 128}),
    (PytorchEngineConfig, {"device_type": "maca", "quant_policy": 8}), (PytorchEngineConfig, {"logprobs_mode": "x"}),
    (PytorchEngineConfig, {"prefix_cache_decode_state_interval": 65}), (PytorchEngineConfig, {"role": "Some"}),
    (PytorchEngineConfig, {"distributed_executor_backend": "mpi"}), (PytorchEngineConfig, {"eviction_type": "swap"}),
    (messages.VisionConfig, {"max_batch_size": 0}), (ChatTemplateConfig, {"capability": "sing"}),
]  # fmt: skip


@pytest.mark.parametrize(("record", "values"), BAD)
def test_bounds(record: type, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="|".join(values)):
        record(**values)


def test_a_count_of_blocks_as_before_0_15() -> None:
    from tokenmill.api.compat import engine_config

    assert engine_config("m", TurbomindEngineConfig(cache_max_entry_count=200)).cache.num_blocks == 200
    assert engine_config("m", TurbomindEngineConfig(cache_max_entry_count=0.5)).cache.memory_frac == 0.5


METHODS = {
    "__call__": ["prompts", "gen_config"],
    "infer": ["prompts", "gen_config", "do_preprocess", "adapter_name", "use_tqdm"],
    "batch_infer": ["prompts", "gen_config", "do_preprocess", "adapter_name", "use_tqdm"],
    "stream_infer": ["prompts", "sessions", "gen_config", "do_preprocess", "adapter_name"],
    "chat": ["prompt", "session", "gen_config", "stream_response", "adapter_name"],
    "session": [], "get_ppl": ["input_ids"], "get_reward_score": ["input_ids"], "get_logits": ["input_ids"],
    "generate": ["prompts", "gen_config", "do_preprocess"], "close": [],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_of_a_pipeline(name: str) -> None:
    given = [p for p in inspect.signature(getattr(tokenmill.Pipeline, name)).parameters if p not in ("self", "options")]
    assert given == METHODS[name]


def test_arguments_of_pipeline() -> None:
    from tokenmill.api.pipeline import pipeline

    given = list(inspect.signature(pipeline).parameters)
    assert given[:4] == ["model_path", "backend_config", "chat_template_config", "log_level"]
    with pytest.raises(ConfigError, match="speculative"):
        pipeline("m", speculative_config=messages.SpeculativeConfig("eagle"))
    with pytest.raises(ConfigError, match="no_such"):
        pipeline("m", vision_config=messages.VisionConfig(), max_log_len=5, no_such=1)


@pytest.fixture
def echo() -> Iterator[Opened]:
    with opened() as pipe:
        yield pipe


def test_n_answers(echo: Opened) -> None:
    config = GenerationConfig(n=3, do_sample=True, random_seed=7)
    answers = echo("hi", config)
    assert [(a.text, a.index) for a in answers] == [("hi", 0), ("hi", 1), ("hi", 2)]
    assert sorted(r.sampling.seed for r in echo.model.fake.seen) == [7, 8, 9]
    assert [a.text for a in echo(["a", "b"], GenerationConfig(n=2))] == ["a", "a", "b", "b"]
    pieces = list(echo.stream_infer("xy", gen_config=GenerationConfig(n=2)))
    assert ["".join(p.text for p in pieces if p.index == i) for i in (0, 1)] == ["xy", "xy"]


def test_sessions_old_names(echo: Opened) -> None:
    session = echo.chat("hello")
    assert session._id == session.id and session._step > 5 and session.history == [("hello", "hello")]


def test_rewards_need_a_reward_model(echo: Opened) -> None:
    with pytest.raises(ConfigError, match="InternLM2ForRewardModel"):
        echo.get_reward_score([1, 2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("surface") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[tokenmill.Pipeline]:
    wish = PytorchEngineConfig(dtype="float32", device_type="cpu", session_len=128)
    with tokenmill.pipeline(str(folder), wish) as pipe:
        yield pipe


def expected(folder: Path, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with torch.inference_mode():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    return out.logits[0], out.hidden_states[-1][0]


def test_logits_and_hidden_states_of_both_kinds(folder: Path, tiny: tokenmill.Pipeline) -> None:
    prompt = [1, 30, 40, 50, 60, 70]
    config = GenerationConfig(max_new_tokens=5, ignore_eos=True, output_logits="generation")
    config.output_last_hidden_state = "generation"
    answer = tiny(prompt, config)
    logits, hidden = expected(folder, [*prompt, *answer.token_ids])
    assert len(answer.token_ids) == 5
    torch.testing.assert_close(answer.logits, logits[5:10], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(answer.last_hidden_state, hidden[5:10], atol=1e-3, rtol=1e-3)
    whole = tiny(prompt, GenerationConfig(max_new_tokens=5, ignore_eos=True, output_logits="all"))
    torch.testing.assert_close(whole.logits, logits[:10], atol=1e-3, rtol=1e-3)
    pieces = list(tiny.stream_infer(prompt, gen_config=config))
    torch.testing.assert_close(torch.cat([p.logits for p in pieces if p.logits is not None]), answer.logits)


def test_get_logits(folder: Path, tiny: tokenmill.Pipeline) -> None:
    ids = [[1, 30, 40, 50], [1, 60]]
    found = tiny.get_logits(ids)
    assert found.shape == (2, 4, 512) and not found[1, 2:].any()
    for row, one in zip(found, ids, strict=True):
        torch.testing.assert_close(row[: len(one)], expected(folder, one)[0], atol=1e-3, rtol=1e-3)
    assert tiny.get_logits([1, 30]).shape == (1, 2, 512)


def array(*rows: int) -> dict[str, RawArray]:
    data = torch.tensor(rows, dtype=torch.float32).numpy().tobytes()
    return {"logits": RawArray((len(rows), 1), "float32", data)}


def seen(chunk: Chunk) -> list[float]:
    import numpy as np

    return np.frombuffer(chunk.arrays["logits"].data, np.float32).tolist() if chunk.arrays else []


def test_rows_of_tokens_that_are_not_shown() -> None:
    for mode, first, last in (("generation", [2], []), ("all", [0, 1, 2], [])):
        rows = Rows({"logits": mode})
        assert seen(rows.cut(Chunk(token_ids=(9,), arrays=array(0, 1, 2), usage=Usage(3, 1)))) == first
        assert seen(rows.cut(Chunk(token_ids=(9,), arrays=array(0, 1, 3), usage=Usage(3, 2)))) == [3]
        # A stop token was drawn and is no part of the answer.
        assert seen(rows.cut(Chunk(token_ids=(), arrays=array(4), usage=Usage(3, 3)))) == last
    grouped = Rows({"logits": "generation"})
    assert seen(grouped.cut(Chunk(token_ids=(8, 9), arrays=array(0, 1, 2, 3), usage=Usage(3, 2)))) == [2, 3]


def test_tokenizer_class(folder: Path) -> None:
    ours, theirs = Tokenizer(str(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    text = "hello 狐狸 🦊 world"
    bare = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text) == [theirs.bos_token_id, *bare] and ours.encode(text, add_bos=False) == bare
    assert ours.encode(text, add_special_tokens=False) == bare == ours(text).input_ids
    assert ours([text, "x"]).input_ids == [bare, theirs.encode("x", add_special_tokens=False)]
    assert ours.decode(ours.encode(text)) == text == theirs.decode(bare)
    assert ours.decode(bare, offset=2) == theirs.decode(bare[2:])
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)
    said, state = "", DetokenizeState()
    for end in range(1, len(bare) + 1):
        piece, state = ours.detokenize_incrementally(bare[:end], state)
        said += piece
        assert "\ufffd" not in piece
    assert said == text and state.ids_offset == len(bare)
    wanted = [i for i in range(len(theirs)) if "fox" in theirs.decode([i])]
    assert wanted and ours.indexes_containing_token("fox") == wanted


def test_chat_template_json(tmp_path: Path) -> None:
    config = ChatTemplateConfig("internlm2", meta_instruction="M", capability="chat", stop_words=["<|im_end|>"])
    file = tmp_path / "t.json"
    text = config.to_json(str(file))
    assert set(json.loads(text)) == set(TEMPLATE) and json.loads(file.read_text()) == json.loads(text)
    assert ChatTemplateConfig.from_json(text) == config == ChatTemplateConfig.from_json(str(file))


def test_load_image(tmp_path: Path) -> None:
    import base64

    from PIL import Image

    from tokenmill.api.load_image import IMAGE_TOKEN, load_image

    file = tmp_path / "i.png"
    Image.new("RGBA", (3, 2), (255, 0, 0, 255)).save(file)
    encoded = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    for given in (str(file), encoded, Image.open(file), file.as_uri()):
        image = load_image(given)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (255, 0, 0))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_image(str(tmp_path / "none.png"))
    for wrong in ("data:image/png;base64,!!", "data:image/png;base64,AAAA"):
        with pytest.raises(FormatError):
            load_image(wrong)
    assert IMAGE_TOKEN == "<IMAGE_TOKEN>"


def test_pairs_of_text_and_images(tmp_path: Path) -> None:
    """(text, image), (image, text) and (text, [images]) are the same message, and answer as it does."""
    from tests.support.pictures import picture

    from tokenmill.api.prompts import sort_prompts

    image = picture(60, 40, 1)
    file = tmp_path / "i.png"
    image.save(file)
    made = make_tiny("internvl", tmp_path / "vl")
    config = GenerationConfig(max_new_tokens=3, ignore_eos=True)
    with tokenmill.pipeline(str(made), PytorchEngineConfig(dtype="float32", device_type="cpu")) as pipe:
        parts = [{"type": "image", "image": file.read_bytes()}, {"type": "text", "text": "what?"}]
        expected = pipe([{"role": "user", "content": parts}], config)
        assert expected.finish_reason == "length", expected
        forms = [("what?", image), (image, "what?"), ("what?", [image]), ("what?", str(file))]
        assert pipe(forms[0], config).token_ids == expected.token_ids
        assert [a.token_ids for a in pipe(forms[1:], config)] == [expected.token_ids] * 3
    url = sort_prompts(("x", "https://host/i.png")).items[0][0]["content"][0]  # type: ignore[index]
    assert url == {"type": "image", "image": "https://host/i.png"}
    for wrong in ((image, image), ("x", 5), ("x", image, image)):
        with pytest.raises(ConfigError):
            sort_prompts(wrong)
