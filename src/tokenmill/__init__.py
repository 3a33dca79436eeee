"""Tokenmill: quantize, run and serve language models. Public names are resolved when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
version_info = (0, 1, 0)

if TYPE_CHECKING:
    from tokenmill.api.client import APIClient as APIClient
    from tokenmill.api.client import client as client
    from tokenmill.api.configs import (
        ChatTemplateConfig as ChatTemplateConfig,
    )
    from tokenmill.api.configs import (
        GenerationConfig as GenerationConfig,
    )
    from tokenmill.api.configs import (
        PytorchEngineConfig as PytorchEngineConfig,
    )
    from tokenmill.api.configs import (
        TurbomindEngineConfig as TurbomindEngineConfig,
    )
    from tokenmill.api.pipeline import Pipeline as Pipeline
    from tokenmill.api.pipeline import pipeline as pipeline
    from tokenmill.api.response import Response as Response

_HOMES = {
    "pipeline": "api.pipeline",
    "Pipeline": "api.pipeline",
    "Response": "api.response",
    "GenerationConfig": "api.configs",
    "TurbomindEngineConfig": "api.configs",
    "PytorchEngineConfig": "api.configs",
    "ChatTemplateConfig": "api.configs",
    "APIClient": "api.client",
    "client": "api.client",
}

__all__ = ["__version__", "version_info", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tokenmill' has no attribute {name!r}")
    return getattr(import_module(f"tokenmill.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
