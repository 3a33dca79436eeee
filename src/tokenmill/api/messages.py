"""LMDeploy's small records, and its `lmdeploy.messages` in one place. What each field means here is said where it is
used: `compat.py` for configurations, `pipeline.py` for answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from tokenmill.api.configs import GenerationConfig, PytorchEngineConfig, QuantPolicy, TurbomindEngineConfig
from tokenmill.api.response import Response
from tokenmill.errors import ConfigError

__all__ = [
    "EngineOutput", "GenerationConfig", "PytorchEngineConfig", "QuantPolicy", "Response", "ResponseType",
    "SpeculativeConfig", "TurbomindEngineConfig", "VisionConfig",
]  # fmt: skip


class ResponseType(Enum):
    """How LMDeploy's engines end a request. Ours say it in `finish_reason` and `error_code`."""

    SUCCESS = auto()
    FINISH = auto()
    ENGINE_STOP_ERROR = auto()
    SESSION_REPEAT = auto()
    SESSION_NOT_EXIST = auto()
    HANDLER_NOT_EXIST = auto()
    INPUT_LENGTH_ERROR = auto()
    INTERNAL_ENGINE_ERROR = auto()
    CANCEL = auto()
    PREFIX_CACHE_CONFLICT = auto()
    NO_QUEUE = auto()
    NOT_SUPPORTED = auto()
    OUT_OF_MEMORY = auto()


@dataclass
class EngineOutput:
    """What LMDeploy's engines give for a step, for code that annotates with it."""

    status: ResponseType
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] | None = None
    logits: Any = None
    last_hidden_state: Any = None
    cache_block_ids: list[int] | None = None
    req_metrics: Any = None
    routed_experts: Any = None
    ce_loss: float | None = None


@dataclass
class VisionConfig:
    """How many images are encoded together. Taken by `pipeline` and of no effect: the engine batches images itself."""

    max_batch_size: int = 1
    thread_safe: bool = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {self.max_batch_size}; it must be at least 1")


@dataclass
class SpeculativeConfig:
    """A drafting method; `pipeline` says which are served."""

    method: str
    model: str = ""
    num_speculative_tokens: int = 1

    def __post_init__(self) -> None:
        if self.num_speculative_tokens < 1:
            raise ConfigError(f"num_speculative_tokens is {self.num_speculative_tokens}; it must be at least 1")
