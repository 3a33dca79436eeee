"""What a user gives a pipeline, sorted: one prompt or several; text, messages or token ids. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenmill.api.configs import GenerationConfig
from tokenmill.errors import ConfigError
from tokenmill.types import Message

Prompt = str | tuple[int, ...] | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Prompts:
    """`single`: the user gave one prompt and gets one answer, not a list."""

    items: tuple[Prompt, ...]
    single: bool


def sort_prompts(given: Any) -> Prompts:
    """Raises ConfigError on what is no prompt."""
    if isinstance(given, str) or _is_ids(given) or _is_messages(given):
        return Prompts((_prompt(given),), True)
    if isinstance(given, tuple):
        raise ConfigError("a prompt of text and images is not served; give text, messages or token ids")
    if not isinstance(given, list):
        raise ConfigError(f"prompts is a {type(given).__name__}; give a text, a list of texts, messages or token ids")
    return Prompts(tuple(_prompt(item) for item in given), False)


def per_prompt(config: GenerationConfig | list[GenerationConfig], count: int) -> list[GenerationConfig]:
    """A configuration for each prompt. Raises ConfigError where a list of them has another length."""
    if not isinstance(config, list):
        return [config] * count
    if len(config) != count:
        raise ConfigError(f"there are {count} prompts and {len(config)} gen_configs; give one, or one for each")
    return config


def _prompt(item: Any) -> Prompt:
    if isinstance(item, str):
        return item
    if _is_ids(item) or _is_messages(item):
        return tuple(item)
    raise ConfigError(f"{str(item)[:60]!r} is no prompt; give a text, a list of messages, or a list of token ids")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
