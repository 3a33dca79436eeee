"""LMDeploy's records as ours, each spelling translated once. What is asked for and not served is refused by name.

Settings that change nothing here (LMDeploy ignores most of them too, or they tune what Tokenmill decides itself) are
accepted; the first use of each that differs from its default is noted in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from tokenmill.api.configs import (
    ChatTemplateConfig,
    EngineWish,
    GenerationConfig,
    PytorchEngineConfig,
    QuantPolicy,
    TurbomindEngineConfig,
)
from tokenmill.api.formats import grammar_of
from tokenmill.api.templates import choice_of
from tokenmill.config import (
    CacheConfig,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    validate,
)
from tokenmill.errors import ConfigError
from tokenmill.log import get_logger
from tokenmill.tokenize.choose import TemplateChoice
from tokenmill.types import Sampling, TextRequest, Want

KV_KINDS = {
    QuantPolicy.NONE: "auto", QuantPolicy.INT4: "int4", QuantPolicy.INT8: "int8", QuantPolicy.FP8: "fp8",
}  # fmt: skip
DEVICES = {"cuda": "auto", "cpu": "cpu", "auto": "auto"}
# Fields whose other values would change answers or places, and are not served.
_REFUSED = (
    "dp", "cp", "ep", "nnodes", "adapters", "empty_init", "custom_module_map", "enable_microbatch", "enable_eplb",
    "dllm_block_length", "enable_return_routed_experts", "role", "num_cpu_blocks",
)  # fmt: skip
_USED = (
    "dtype", "model_format", "tp", "devices", "session_len", "max_batch_size", "cache_max_entry_count",
    "cache_block_seq_len", "block_size", "enable_prefix_caching", "quant_policy", "rope_scaling_factor",
    "use_logn_attn", "download_dir", "revision", "max_prefill_token_num", "async_", "language_model_only",
    "hf_overrides", "model_name", "num_gpu_blocks", "eager_mode", "device_type", "cudagraph_capture_batch_sizes",
)  # fmt: skip
_REFUSED_OF_ANSWERS = (
    "logits_processors", "with_cache", "preserve_cache", "migration_request", "return_routed_experts",
    "repetition_ngram_size", "repetition_ngram_threshold",
)  # fmt: skip
_FIRST_KEYWORDS: dict[str, Any] = {
    "request_output_len": 512, "top_k": 40, "top_p": 0.8, "temperature": 0.8, "repetition_penalty": 1.0,
    "ignore_eos": False,
}  # fmt: skip
WordIds = Mapping[str, tuple[int, ...]]


def engine_config(model: str, wish: EngineWish | None, trust_remote_code: bool = False) -> EngineConfig:
    """What will be started. Prefix caching is on unless a record says otherwise: its default there is off, yet the
    answers are the same with it. Raises ConfigError."""
    if wish is None:
        return validate(EngineConfig(model=ModelConfig(model, trust_remote_code=trust_remote_code)))
    if not isinstance(wish, TurbomindEngineConfig | PytorchEngineConfig):
        raise ConfigError(
            f"backend_config is a {type(wish).__name__}; it must be a TurbomindEngineConfig or PytorchEngineConfig"
        )
    _refuse_unserved(wish, _REFUSED)
    _note_unused(wish)
    return validate(
        EngineConfig(
            model=_model(model, wish, trust_remote_code),
            cache=_cache(wish),
            scheduler=SchedulerConfig(max_rows=wish.max_batch_size, overlap=bool(getattr(wish, "async_", 1))),
            parallel=ParallelConfig(tp=wish.tp, devices=tuple(getattr(wish, "devices", None) or ())),
            kernels=_kernels(wish),
        )
    )


def _model(model: str, wish: EngineWish, trust_remote_code: bool) -> ModelConfig:
    weight_format = None if wish.model_format in (None, "hf", "llama", "layout") else wish.model_format
    return ModelConfig(
        path=model,
        dtype=wish.dtype,
        weight_format=weight_format,
        revision=wish.revision,
        download_dir=wish.download_dir,
        trust_remote_code=trust_remote_code,
        language_only=wish.language_model_only,
        max_model_tokens=wish.session_len,
        rope_scaling_factor=getattr(wish, "rope_scaling_factor", 0.0),
        use_logn_attn=getattr(wish, "use_logn_attn", False) or None,
        hf_overrides=dict(wish.hf_overrides or {}),
    )


def _cache(wish: EngineWish) -> CacheConfig:
    policy = QuantPolicy(wish.quant_policy)
    if policy not in KV_KINDS:
        raise ConfigError(f"quant_policy {int(policy)} ({policy.name}) is not served; 0, 4, 8 and 16 are")
    count = wish.cache_max_entry_count
    cache = CacheConfig(
        kv=KV_KINDS[policy],
        block_tokens=_changed(wish, "cache_block_seq_len") or _changed(wish, "block_size"),
        num_blocks=getattr(wish, "num_gpu_blocks", 0) or None,
    )
    # Until 0.15 a number of 1 and more counted blocks.
    return replace(cache, memory_frac=count) if count < 1 else replace(cache, num_blocks=int(count))


def _kernels(wish: EngineWish) -> KernelConfig:
    device = getattr(wish, "device_type", "cuda")
    if device not in DEVICES:
        raise ConfigError(f"device_type is {device!r}; served are {', '.join(DEVICES)}")
    rows = getattr(wish, "cudagraph_capture_batch_sizes", None)
    return KernelConfig(
        device=DEVICES[device], eager=getattr(wish, "eager_mode", False), capture_rows=tuple(rows) if rows else None
    )


def template_choice(config: ChatTemplateConfig | None) -> TemplateChoice:
    if config is None:
        return TemplateChoice()
    return choice_of(asdict(config), "the chat template")


def text_request(request: TextRequest, config: GenerationConfig, words: WordIds) -> TextRequest:
    """`request` (its id and prompt) with all that a GenerationConfig says; `words` are the ids of each bad word.

    Raises ConfigError on what is not served, RequestError on a response_format that is none.
    """
    _refuse_unserved(config, _REFUSED_OF_ANSWERS)
    return replace(
        request,
        sampling=sampling(config, words),
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens or 0,
        stop_strings=tuple(config.stop_words or ()),
        stop_token_ids=tuple(config.stop_token_ids or ()),
        ignore_eos=config.ignore_eos,
        include_stop=config.include_stop_str_in_output,
        skip_special_tokens=config.skip_special_tokens,
        logprobs=config.logprobs is not None,
        top_logprobs=config.logprobs or 0,
        grammar=grammar_of(config.response_format),
        want=_want(config),
    )


def sampling(config: GenerationConfig, words: WordIds) -> Sampling:
    """Greedy unless `do_sample`; top_p 0 is greedy too."""
    bad = (*(config.bad_token_ids or ()), *(_single(word, words[word]) for word in config.bad_words or ()))
    if not config.do_sample or config.top_p == 0.0:
        return Sampling(temperature=0.0, bad_token_ids=bad)
    return Sampling(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        bad_token_ids=bad,
        seed=config.random_seed,
    )


def generation_config(options: Mapping[str, Any]) -> GenerationConfig:
    """The keyword arguments that `pipe(...)` took before 0.3 instead of a GenerationConfig, with their defaults."""
    unknown = sorted(set(options) - set(_FIRST_KEYWORDS))
    if unknown:
        raise ConfigError(f"unknown arguments {', '.join(unknown)}; pass a GenerationConfig as gen_config")
    said = {**_FIRST_KEYWORDS, **options}
    most = said.pop("request_output_len")
    return GenerationConfig(max_new_tokens=most, do_sample=True, **said)


def _want(config: GenerationConfig) -> Want:
    want = Want.TOKEN
    for name, flag in (("output_logits", Want.LOGITS), ("output_last_hidden_state", Want.HIDDEN)):
        if getattr(config, name) is not None:
            want |= flag
    return want


def _single(word: str, ids: tuple[int, ...]) -> int:
    if len(ids) != 1:
        raise ConfigError(f"the bad word {word!r} is {len(ids)} tokens; only single tokens can be forbidden")
    return ids[0]


def _changed(record: Any, name: str) -> Any:
    """The value of a field where it is there and not its default."""
    value = getattr(record, name, None)
    default = {field.name: field.default for field in fields(record)}.get(name)
    return None if value == default else value


def _refuse_unserved(record: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = _changed(record, name)
        if value is not None:
            raise ConfigError(f"{type(record).__name__}.{name} is {value!r}, which is not served; leave it out")


def _note_unused(wish: EngineWish) -> None:
    names = [f.name for f in fields(wish) if f.name not in _USED and _changed(wish, f.name) is not None]
    if names:
        get_logger().warning("%s: no effect here: %s", type(wish).__name__, ", ".join(names))
