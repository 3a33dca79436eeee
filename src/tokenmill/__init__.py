"""Tokenmill: quantize, run and serve language models. Public names are resolved when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
version_info = (0, 1, 0)

if TYPE_CHECKING:
    from tokenmill.api.client import APIClient, client
    from tokenmill.api.configs import (
        ChatTemplateConfig,
        GenerationConfig,
        PytorchEngineConfig,
        QuantPolicy,
        TurbomindEngineConfig,
    )
    from tokenmill.api.messages import SpeculativeConfig, VisionConfig
    from tokenmill.api.pipeline import Pipeline, pipeline
    from tokenmill.api.response import Response, Session
    from tokenmill.api.serving import serve
    from tokenmill.api.tokenizer import Tokenizer

_HOMES = {
    "pipeline": "api.pipeline",
    "Pipeline": "api.pipeline",
    "Response": "api.response",
    "GenerationConfig": "api.configs",
    "TurbomindEngineConfig": "api.configs",
    "PytorchEngineConfig": "api.configs",
    "ChatTemplateConfig": "api.configs",
    "QuantPolicy": "api.configs",
    "VisionConfig": "api.messages",
    "SpeculativeConfig": "api.messages",
    "Session": "api.response",
    "Tokenizer": "api.tokenizer",
    "APIClient": "api.client",
    "client": "api.client",
    "serve": "api.serving",
}

__all__ = [
    "APIClient", "ChatTemplateConfig", "GenerationConfig", "Pipeline", "PytorchEngineConfig", "QuantPolicy", "Response",
    "Session", "SpeculativeConfig", "Tokenizer", "TurbomindEngineConfig", "VisionConfig", "__version__", "client",
    "pipeline", "serve", "version_info",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tokenmill' has no attribute {name!r}")
    return getattr(import_module(f"tokenmill.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
