"""LMDeploy's configuration records: its names, its defaults, its checks. `compat.py` says what each becomes here.

They are plain mutable records, as users of LMDeploy set fields after construction. A value out of bounds raises
ConfigError that names it; a field that asks for what is not served is refused by `compat.py` when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenmill.errors import ConfigError


class QuantPolicy(IntEnum):
    """KV cache formats by LMDeploy's numbers."""

    NONE = 0
    INT4 = 4
    INT8 = 8
    FP8 = 16
    FP8_E5M2 = 17
    TURBO_QUANT = 42


@dataclass
class GenerationConfig:
    """How one answer is made. `do_sample` False is greedy, whatever the other numbers say (as since LMDeploy 0.6)."""

    n: int = 1
    max_new_tokens: int | None = 512
    do_sample: bool = False
    top_p: float = 1.0
    top_k: int = 50
    min_p: float = 0.0
    temperature: float = 0.8
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    random_seed: int | None = None
    stop_words: list[str] | None = None
    bad_words: list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_token_ids: list[int] | None = None
    min_new_tokens: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    logits_processors: list[Callable[..., Any]] | None = None
    output_logits: str | None = None
    output_last_hidden_state: str | None = None
    include_stop_str_in_output: bool = False
    with_cache: bool = False
    preserve_cache: bool = False
    migration_request: Any = None
    return_ppl: bool = False
    return_routed_experts: bool = False
    repetition_ngram_size: int = 0
    repetition_ngram_threshold: int = 0

    def __post_init__(self) -> None:
        _at_least("n", self.n, 1)
        _within("top_p", self.top_p, 0.0, 1.0)
        _at_least("top_k", self.top_k, 0)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("temperature", self.temperature, 0.0, 2.0)
        if not self.repetition_penalty > 0:
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0")
        _at_least("repetition_ngram_size", self.repetition_ngram_size, 0)
        _at_least("repetition_ngram_threshold", self.repetition_ngram_threshold, 0)
        if self.max_new_tokens is not None:
            _at_least("max_new_tokens", self.max_new_tokens, 0)
        if self.min_new_tokens is not None:
            _at_least("min_new_tokens", self.min_new_tokens, 0)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, 20)
        for name in ("output_logits", "output_last_hidden_state"):
            _one_of(self, name, (None, "all", "generation"))


@dataclass
class TurbomindEngineConfig:
    dtype: str = "auto"
    model_format: str | None = None
    tp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    device_num: int | None = None
    attn_tp_size: int | None = None
    attn_cp_size: int | None = None
    attn_dp_size: int | None = None
    mlp_tp_size: int | None = None
    mlp_dp_size: int | None = None
    outer_dp_size: int | None = None
    nnodes: int = 1
    node_rank: int = 0
    dist_init_addr: str | None = None
    devices: list[int] | None = None
    session_len: int | None = None
    max_batch_size: int | None = None
    cache_max_entry_count: float = 0.8
    cache_chunk_size: int = -1
    cache_block_seq_len: int = 64
    enable_prefix_caching: bool = False
    cache_checkpoint_interval: int = 4096
    cache_prompt: str = "auto"
    cache_prompt_boundary_skip: int = 1
    cache_generation: str = "auto"
    quant_policy: int = 0
    rope_scaling_factor: float = 0.0
    use_logn_attn: bool = False
    download_dir: str | None = None
    revision: str | None = None
    max_prefill_token_num: int = 8192
    num_tokens_per_iter: int = 0
    max_prefill_iters: int = 1
    async_: int = 1
    empty_init: bool = False
    language_model_only: bool = False
    communicator: str = "nccl"
    hf_overrides: dict[str, Any] | None = None
    enable_metrics: bool = True
    model_name: str | None = None

    def __post_init__(self) -> None:
        _check_engine(self)
        if not self.cache_max_entry_count > 0:
            raise ConfigError(f"cache_max_entry_count is {self.cache_max_entry_count}; it must be above 0")
        if self.quant_policy in (QuantPolicy.FP8, QuantPolicy.FP8_E5M2):
            raise ConfigError(f"quant_policy is {self.quant_policy}; an fp8 KV cache needs a PytorchEngineConfig")
        for name in ("cp", "nnodes", "max_prefill_iters", "cache_block_seq_len"):
            _at_least(name, getattr(self, name), 1)
        for name in ("node_rank", "num_tokens_per_iter", "rope_scaling_factor"):
            _at_least(name, getattr(self, name), 0)
        _one_of(self, "async_", (0, 1))
        _one_of(self, "cache_prompt", ("all", "auto"))
        _one_of(self, "cache_generation", ("all", "auto", "none"))
        _one_of(self, "communicator", ("nccl", "native", "cuda-ipc"))


@dataclass
class PytorchEngineConfig:
    dtype: str = "auto"
    tp: int = 1
    dp: int = 1
    dp_rank: int = 0
    ep: int = 1
    session_len: int | None = None
    max_batch_size: int | None = None
    attn_tp_size: int | None = None
    mlp_tp_size: int | None = None
    moe_tp_size: int | None = None
    cache_max_entry_count: float = 0.8
    prefill_interval: int = 16
    block_size: int = 64
    kernel_block_size: int = -1
    num_cpu_blocks: int = 0
    num_gpu_blocks: int = 0
    adapters: dict[str, str] | None = None
    max_prefill_token_num: int = 8192
    cudagraph_capture_batch_sizes: list[int] | None = None
    thread_safe: bool = False
    eager_mode: bool = False
    enable_prefix_caching: bool = False
    prefix_cache_state_budget: int = 0
    prefix_cache_decode_state_interval: int = 0
    device_type: str = "cuda"
    custom_module_map: str | None = None
    quant_policy: int = QuantPolicy.NONE
    distributed_executor_backend: str | None = None
    enable_mp_engine: bool = False
    mp_engine_backend: str = "mp"
    empty_init: bool = False
    enable_microbatch: bool = False
    enable_eplb: bool = False
    model_format: str | None = None
    enable_metrics: bool = True
    hf_overrides: dict[str, Any] | None = None
    language_model_only: bool = False
    logprobs_mode: str | None = None
    enable_return_routed_experts: bool = False
    enable_transfer_obj_ref: bool = False
    dllm_block_length: int | None = None
    dllm_unmasking_strategy: str = "low_confidence_dynamic"
    dllm_denoising_steps: int | None = None
    dllm_confidence_threshold: float = 0.85
    role: str = "Hybrid"
    migration_backend: str = "DLSlime"
    download_dir: str | None = None
    revision: str | None = None
    eviction_type: str = "recompute"

    def __post_init__(self) -> None:
        _check_engine(self)
        if not 0.0 < self.cache_max_entry_count < 1.0:
            raise ConfigError(f"cache_max_entry_count is {self.cache_max_entry_count}; it must lie between 0 and 1")
        for name in ("num_gpu_blocks", "num_cpu_blocks", "dp_rank", "prefix_cache_state_budget"):
            _at_least(name, getattr(self, name), 0)
        for name, allowed in _PYTORCH_CHOICES.items():
            _one_of(self, name, allowed)
        self._check_blocks()
        if self.quant_policy and self.device_type not in ("cuda", "ascend", "cpu", "auto"):
            raise ConfigError(f"quant_policy is {self.quant_policy}; on {self.device_type} it must be 0")

    def _check_blocks(self) -> None:
        own, size = self.kernel_block_size, self.block_size
        _at_least("block_size", size, 1)
        if own != -1 and (own < 16 or own & (own - 1) or size % own):
            raise ConfigError(
                f"kernel_block_size is {own}; it must be a power of two from 16 on that divides block_size {size}"
            )
        if self.prefix_cache_decode_state_interval % size:
            raise ConfigError(
                f"prefix_cache_decode_state_interval is {self.prefix_cache_decode_state_interval}; it must be a "
                f"multiple of block_size {size}"
            )


@dataclass
class ChatTemplateConfig:
    """A builtin's name and pieces that replace its own; None keeps them."""

    model_name: str | None = None
    model_path: str | None = None
    system: str | None = None
    meta_instruction: str | None = None
    eosys: str | None = None
    user: str | None = None
    eoh: str | None = None
    assistant: str | None = None
    eoa: str | None = None
    tool: str | None = None
    eotool: str | None = None
    separator: str | None = None
    capability: str | None = None
    stop_words: list[str] | None = None

    def __post_init__(self) -> None:
        _one_of(self, "capability", (None, "completion", "infilling", "chat", "python"))

    def to_json(self, file_path: str | None = None) -> str:
        """The JSON form; written to a file where one is given."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        if file_path is not None:
            Path(file_path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, file_or_string: str) -> ChatTemplateConfig:
        """Reads a path or the JSON text itself. Raises ConfigError where it is neither."""
        is_text = file_or_string.lstrip().startswith("{")
        try:
            text = file_or_string if is_text else Path(file_or_string).read_text(encoding="utf-8")
            return cls(**json.loads(text))
        except OSError as error:
            raise ConfigError(f"the chat template {file_or_string} cannot be read: {error.strerror}") from None
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the chat template is no JSON form of one: {error}") from None


_PYTORCH_CHOICES: dict[str, tuple[Any, ...]] = {
    # cpu and auto are ours.
    "device_type": ("cuda", "ascend", "maca", "camb", "cpu", "auto"),
    "distributed_executor_backend": (None, "uni", "mp", "ray"),
    "logprobs_mode": (None, "raw_logits", "raw_logprobs"),
    "role": ("Hybrid", "Prefill", "Decode"),
    "migration_backend": ("DLSlime", "Mooncake"),
    "eviction_type": ("recompute", "copy"),
}
EngineWish = TurbomindEngineConfig | PytorchEngineConfig


def _check_engine(config: EngineWish) -> None:
    for name in ("tp", "dp", "ep"):
        _at_least(name, getattr(config, name), 1)
    for name in ("session_len", "max_batch_size"):
        if getattr(config, name) is not None:
            _at_least(name, getattr(config, name), 1)
    _one_of(config, "dtype", ("auto", "float16", "bfloat16", "float32"))
    _at_least("max_prefill_token_num", config.max_prefill_token_num, 1)
    if config.quant_policy not in list(QuantPolicy):
        known = ", ".join(str(int(p)) for p in QuantPolicy)
        raise ConfigError(f"quant_policy is {config.quant_policy}; it must be one of {known}")


def _one_of(record: Any, name: str, allowed: tuple[Any, ...]) -> None:
    value = getattr(record, name)
    if value not in allowed:
        known = ", ".join(repr(choice) for choice in allowed if choice is not None)
        raise ConfigError(f"{name} is {value!r}; it must be one of {known}")


def _at_least(name: str, value: float, least: int) -> None:
    if isinstance(value, bool) or not value >= least:
        raise ConfigError(f"{name} is {value!r}; it must be at least {least}")


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}; it must be {least} to {most}")
