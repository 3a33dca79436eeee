"""Qwen3: as Qwen2.5, without a system text of its own (its tool text then starts the system block)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenmill.tokenize.chat import qwen2d5
from tokenmill.tokenize.chat._hermes import lower_tools
from tokenmill.types import Message

_lower = lower_tools("")


def _without_leading_newlines(messages: list[Message], tools: Sequence[Message]) -> list[Message]:
    lowered = _lower(messages, tools)
    if tools and messages[0]["role"] != "system":
        lowered[0] = {**lowered[0], "content": lowered[0]["content"].lstrip("\n")}
    return lowered


TEMPLATE = replace(
    qwen2d5.TEMPLATE, name="qwen3", meta_instruction=None, lower_tools=_without_leading_newlines
)
