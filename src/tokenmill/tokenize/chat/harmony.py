"""Harmony, which GPT-OSS speaks: messages with a role and a channel; the system text is the developer's.

Every conversation opens with a system message about the model itself (identity, date, how hard to reason, channels).
Tools stand as TypeScript behind the developer's text. What the model thought before earlier answers is left out, but
for the thought that led to a call whose answer is still to come. The date is the day on which the prompt is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from tokenmill.errors import ConfigError, RequestError
from tokenmill.tokenize.chat._typescript import namespace
from tokenmill.tokenize.messages import call_of, plain_messages
from tokenmill.tokenize.template import PieceTemplate, TemplatePieces
from tokenmill.types import Message

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
CHANNELS = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
TOOLS_CHANNEL = "\nCalls to these tools must go to the commentary channel: 'functions'."
FINAL = "<|start|>assistant<|channel|>final<|message|>"
END = "<|end|>"


def today() -> str:
    return date.today().isoformat()


@dataclass(frozen=True)
class Harmony(PieceTemplate):
    """`meta_instruction`: the developer's text of conversations that bring none. Options of a request:
    `reasoning_effort` (low, medium, high) and `model_identity`."""

    def override(self, pieces: TemplatePieces) -> PieceTemplate:
        """ConfigError on pieces that this template is not made of."""
        taken = ("meta_instruction", "stop_words", "capability")
        given = [name for name in TemplatePieces.__dataclass_fields__ if getattr(pieces, name) is not None]
        if unknown := [name for name in given if name not in taken]:
            raise ConfigError(f"the chat template harmony has no piece {unknown[0]!r}; it has {', '.join(taken)}")
        return super().override(pieces)

    def render(self, messages: Sequence[Message], tools: Sequence[Message], options: dict[str, Any]) -> str:
        if self.capability != "chat":
            return super().render(messages, tools, options)
        talk = plain_messages(messages)
        own = talk[0]["role"] in ("system", "developer")
        developer = talk[0]["content"] if own else self.meta_instruction or ""
        talk = talk[int(own) :]
        text = about_model(options, bool(tools)) + about_task(developer, tools)
        text += "".join(turns(talk))
        if talk and talk[-1]["role"] == "assistant" and not talk[-1].get("tool_calls"):
            return text.removesuffix(END)
        return text + "<|start|>assistant"


def about_model(options: dict[str, Any], has_tools: bool) -> str:
    """The system message."""
    if options.get("builtin_tools"):
        raise RequestError("builtin_tools are not served: no browser and no python is here", param="builtin_tools")
    identity, effort = options.get("model_identity") or IDENTITY, options.get("reasoning_effort") or "medium"
    return (
        f"<|start|>system<|message|>{identity}\nKnowledge cutoff: 2024-06\nCurrent date: {today()}\n\n"
        f"Reasoning: {effort}\n\n{CHANNELS}{TOOLS_CHANNEL if has_tools else ''}{END}"
    )


def about_task(text: str, tools: Sequence[Message]) -> str:
    """The developer's message; nothing where there is neither text nor tool."""
    if not text and not tools:
        return ""
    listing = f"\n\n# Tools\n\n{namespace('functions', tools)}" if tools else ""
    return f"<|start|>developer<|message|>{'# Instructions' + chr(10) * 2 + text if text else ''}{listing}{END}"


def turns(talk: Sequence[Message]) -> list[str]:
    """Every message as it stands in a prompt."""
    names: dict[str, str] = {}
    parts = []
    for index, message in enumerate(talk):
        if message["role"] == "user":
            parts.append(f"<|start|>user<|message|>{message['content']}{END}")
        elif message["role"] == "tool":
            parts.append(_result(message, names))
        elif message["role"] != "assistant":
            raise RequestError(
                f"harmony takes a {message['role']} message at the start of a conversation only; "
                "its roles are system or developer, user, assistant, tool", param="messages",
            )  # fmt: skip
        elif message.get("tool_calls"):
            answered = any(later["role"] == "assistant" and not later.get("tool_calls") for later in talk[index + 1 :])
            parts.append(_calls(message, names, answered))
        else:
            parts.append(FINAL + message["content"] + END)
    return parts


def _calls(message: Message, names: dict[str, str], answered: bool) -> str:
    """Calls, and what stood before them while there is no answer yet: a thought, and words if there is one."""
    thought = message.get("reasoning_content") or message.get("thinking")
    said = [("analysis", thought or message["content"]), ("commentary", message["content"] if thought else "")]
    text = "".join(f"<|start|>assistant<|channel|>{where}<|message|>{words}{END}" for where, words in said if words)
    text = "" if answered else text
    for call in message["tool_calls"]:
        name, arguments = call_of(call)
        # The last call's name is the one of results that do not say whose they are.
        names[str(call.get("id"))] = names[""] = name
        body = json.dumps(arguments, ensure_ascii=False)
        text += f"<|start|>assistant to=functions.{name}<|channel|>commentary json<|message|>{body}<|call|>"
    return text


def _result(message: Message, names: dict[str, str]) -> str:
    name = names.get(str(message.get("tool_call_id"))) or names.get("")
    if name is None:
        raise RequestError("a tool message follows no tool call; send the assistant's call first", param="messages")
    body = json.dumps(message["content"], ensure_ascii=False)
    return f"<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>{body}{END}"


TEMPLATE = Harmony("harmony", stop_words=("<|return|>", "<|call|>"), special_tokens=False)
