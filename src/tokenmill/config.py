"""Settings as frozen nested records. `resolve` turns what a user asked for into what will run, as a new object.

Public spellings of LMDeploy (`cache_max_entry_count`, `session_len`, `quant_policy`) are translated once, in
`api/compat.py`; here every unit is in its name. None means: decided by `resolve` from the model and the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tokenmill.errors import ConfigError

DTYPES = ("auto", "float16", "bfloat16", "float32")
DEVICES = ("auto", "cpu", "cuda")
KV_KINDS = ("auto", "int8", "int4", "int4-plain", "fp8")
BACKENDS = ("native", "transformers")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model. `path` is a folder, a hub name (`org/name[@rev]`) or `demo`; `weight_format` None is detected."""

    path: str = "demo"
    dtype: str = "auto"
    weight_format: str | None = None
    backend: str = "native"
    revision: str | None = None
    download_dir: str | None = None
    trust_remote_code: bool = False
    language_only: bool = False
    max_model_tokens: int | None = None
    rope_scaling_factor: float = 0.0
    use_logn_attn: bool | None = None
    hf_overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The paged KV cache. `memory_frac` is a share of the memory free once everything else is placed.

    `num_blocks` or `memory_bytes`, where given, replace the share. `image_tiles`: how many tiles of images are kept as
    vectors beside it (None: decided by the device).
    """

    kv: str = "auto"
    block_tokens: int | None = None
    memory_frac: float = 0.8
    memory_bytes: int | None = None
    num_blocks: int | None = None
    prefix_caching: bool = True
    image_tiles: int | None = None


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step and of the queue. `itl_target_ms` bounds what prompt chunks may add to a decode step."""

    max_rows: int | None = None
    max_step_tokens: int | None = None
    max_queue: int | None = None
    itl_target_ms: float | None = None
    overlap: bool = True


@dataclass(frozen=True, slots=True)
class ParallelConfig:
    """Ranks of one replica. `devices` are GPU indices; rank 0 plans and broadcasts."""

    tp: int = 1
    devices: tuple[int, ...] = ()
    init_method: str | None = None


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """Where the arithmetic runs. `eager` turns graph capture off; `capture_rows` are the decode buckets."""

    device: str = "auto"
    eager: bool = False
    capture_rows: tuple[int, ...] | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """Where images may come from beside data URLs: hosts by exact name ("*": any public one), a folder of files."""

    domains: tuple[str, ...] = ()
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    parallel: ParallelConfig = ParallelConfig()
    kernels: KernelConfig = KernelConfig()
    media: MediaConfig = MediaConfig()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What `resolve` must know of a model; read from config.json by `models/`."""

    max_model_tokens: int
    dtype: str
    vocab_size: int


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What `resolve` must know of a device."""

    kind: str
    memory_bytes: int
    threads: int = 1
    supports_bf16: bool = True


def validate(config: EngineConfig) -> EngineConfig:
    """The same object where every value is within its bounds; raises ConfigError that names value, limit and fix."""
    _one_of("dtype", config.model.dtype, DTYPES)
    _one_of("backend", config.model.backend, BACKENDS)
    _one_of("KV cache kind", config.cache.kv, KV_KINDS)
    _one_of("device", config.kernels.device, DEVICES)
    if not 0.0 < config.cache.memory_frac < 1.0:
        raise ConfigError(
            f"the KV cache's share of memory is {config.cache.memory_frac}; it must lie between 0 and 1, "
            "for example --cache-max-entry-count 0.8"
        )
    _at_least("tp", config.parallel.tp, 1)
    for name, value in (
        ("block_tokens", config.cache.block_tokens),
        ("num_blocks", config.cache.num_blocks),
        ("image_tiles", config.cache.image_tiles),
        ("max_rows", config.scheduler.max_rows),
        ("max_step_tokens", config.scheduler.max_step_tokens),
        ("max_model_tokens", config.model.max_model_tokens),
    ):
        if value is not None:
            _at_least(name, value, 1)
    return config


def resolve(user: EngineConfig, model: ModelFacts, device: DeviceFacts) -> EngineConfig:
    """What will run: every None that the model or the device decides is filled in. Pure; returns a new object."""
    validate(user)
    gpu = device.kind == "cuda"
    dtype = user.model.dtype
    if dtype == "auto":
        dtype = _auto_dtype(model.dtype, device)
    rows = user.scheduler.max_rows or (256 if gpu else 32)
    tokens = user.scheduler.max_step_tokens or (8192 if gpu else 512)
    return replace(
        user,
        model=replace(user.model, dtype=dtype, max_model_tokens=user.model.max_model_tokens or model.max_model_tokens),
        cache=replace(user.cache, block_tokens=user.cache.block_tokens or (64 if gpu else 16)),
        scheduler=replace(user.scheduler, max_rows=rows, max_step_tokens=max(tokens, rows)),
        kernels=replace(user.kernels, device=device.kind, threads=user.kernels.threads or device.threads),
    )


def _auto_dtype(on_disk: str, device: DeviceFacts) -> str:
    """CPU reference arithmetic is fp32: half types are slower there and lose digits."""
    if device.kind == "cpu":
        return "float32"
    if on_disk == "bfloat16" and not device.supports_bf16:
        return "float16"
    return "float16" if on_disk == "float32" else on_disk


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")
