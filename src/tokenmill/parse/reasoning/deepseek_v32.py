"""DeepSeek-V3.2 and V4: as V3.1, where `thinking` turns it on too."""

from __future__ import annotations

from typing import Any

from tokenmill.parse.reasoning.think_tags import TAGS, ReasoningParser

__all__ = ["TAGS", "ReasoningParser", "starts_inside"]


def starts_inside(options: dict[str, Any]) -> bool:
    return options.get("enable_thinking") is True or options.get("thinking") is True
