"""DeepSeek-V3.1: `<think>` tags, inside from the start only where the request turns thinking on."""

from __future__ import annotations

from typing import Any

from tokenmill.parse.reasoning.think_tags import TAGS, ReasoningParser

__all__ = ["TAGS", "ReasoningParser", "starts_inside"]


def starts_inside(options: dict[str, Any]) -> bool:
    return options.get("enable_thinking") is True
