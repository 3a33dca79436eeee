"""What was decided at start, as plain values: the answer to `control("describe")`, for banners, logs and reports."""

from __future__ import annotations

import time
from typing import Any

import torch

from tokenmill.config import EngineConfig
from tokenmill.engine.contract import KVGroup
from tokenmill.models.contract import ModelSpec
from tokenmill.runner.memory import CacheNeed, arenas
from tokenmill.runner.plan import CONTEXTS


class Phases:
    """Seconds of each phase of a start."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 3), now


def describe(
    config: EngineConfig, need: CacheNeed, groups: tuple[KVGroup, ...], weights_bytes: int, phases: Phases
) -> dict[str, Any]:
    """Bytes are of one rank. `sequences`: how many of each typical length the cache holds at once."""
    sizes = arenas(weights_bytes, groups, need.spec, config)
    context = config.model.max_model_tokens or 0
    typical = sorted({c for c in CONTEXTS if c < context} | {context})
    return {
        "family": need.spec.family,
        "dtype": config.model.dtype,
        "kv": config.cache.kv,
        "device": config.kernels.device,
        "device_name": device_name(config),
        "threads": config.kernels.threads,
        "tp": config.parallel.tp,
        "weights_bytes": sizes.weights,
        "kv_bytes": sizes.kv,
        "workspace_bytes": sizes.workspace,
        "block_tokens": need.shape.block_tokens,
        "num_blocks": groups[0].num_blocks,
        "tokens": sizes.tokens,
        "token_bytes": token_bytes(need.spec, need),
        "max_model_tokens": context,
        "max_rows": config.scheduler.max_rows,
        "max_step_tokens": config.scheduler.max_step_tokens,
        "sequences": {str(c): sizes.tokens // c for c in typical if c},
        "phases_s": dict(phases.seconds),
    }


def token_bytes(spec: ModelSpec, need: CacheNeed) -> int:
    return need.block_bytes(spec.num_layers) // need.shape.block_tokens


def device_name(config: EngineConfig) -> str:
    if config.kernels.device == "cuda":
        first = config.parallel.devices[0] if config.parallel.devices else 0
        return torch.cuda.get_device_name(first)
    return "cpu"
