"""What a chat template is, and the kind made of fixed pieces (LMDeploy's builtin templates).

A template turns messages into the text a model continues. When the last message is the assistant's, the text ends
inside it, without its closing tag. The dialects of `chat/` are declarations of `PieceTemplate`; `jinja.py` runs a
folder's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

from tokenmill.errors import RequestError
from tokenmill.tokenize.messages import plain_messages
from tokenmill.types import Message

# CodeLlama's: where a text is to be filled in, and what the model ends it with.
FILL, END_OF_INFILL = "<FILL>", "<EOT>"
ToolLowering = Callable[[list[Message], Sequence[Message]], list[Message]]


class ChatTemplate(Protocol):
    """`stop_words` end a turn. `special_tokens`: the text is encoded with BOS (a jinja template writes its own)."""

    @property
    def name(self) -> str: ...

    @property
    def stop_words(self) -> tuple[str, ...]: ...

    @property
    def special_tokens(self) -> bool: ...

    def render(self, messages: Sequence[Message], tools: Sequence[Message], options: dict[str, Any]) -> str:
        """Raises RequestError where the conversation cannot be written in this template."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TemplatePieces:
    """Pieces a user may override (`--chat-template` JSON); None keeps the builtin's."""

    system: str | None = None
    meta_instruction: str | None = None
    eosys: str | None = None
    user: str | None = None
    eoh: str | None = None
    assistant: str | None = None
    eoa: str | None = None
    tool: str | None = None
    eotool: str | None = None
    separator: str | None = None
    capability: str | None = None
    stop_words: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PieceTemplate:
    """A template by concatenation: system + text + eosys; user + text + eoh; assistant + text + eoa; separator between
    rounds; tool + text + eotool. `meta_instruction` is the system text of conversations that bring none.

    `start` stands before everything; `prompt_end` is what the prompt ends with where that is not `assistant` itself.
    `capability`: chat; completion and python take the text as it is; infilling puts it around its `<FILL>`.
    `{round}` in `user` becomes the number of the round. `other_role` opens messages of further roles (`{role}` is
    filled in; they end with eosys); empty refuses them.
    `lower_tools` writes tools, calls and results as plain messages; None: the dialect knows no tools.
    """

    name: str
    system: str = ""
    meta_instruction: str | None = None
    eosys: str = ""
    user: str = ""
    eoh: str = ""
    assistant: str = ""
    eoa: str = ""
    tool: str = ""
    eotool: str = ""
    separator: str = ""
    capability: str = "chat"
    stop_words: tuple[str, ...] = ()
    other_role: str = ""
    start: str = ""
    prompt_end: str | None = None
    lower_tools: ToolLowering | None = None
    special_tokens: bool = True

    def override(self, pieces: TemplatePieces) -> PieceTemplate:
        """The same template with every piece that is given."""
        given = {name: getattr(pieces, name) for name in TemplatePieces.__dataclass_fields__}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if "assistant" in changes:
            changes["prompt_end"] = None
        if changes.get("capability") == "infilling":
            changes.setdefault("stop_words", (*self.stop_words, END_OF_INFILL))
        return replace(self, **changes)

    def render(self, messages: Sequence[Message], tools: Sequence[Message], options: dict[str, Any]) -> str:
        plain = plain_messages(messages)
        if self.capability != "chat":
            return self._bare("".join(message["content"] for message in plain))
        plain = self._lowered(plain, tools)
        rounds = accumulate(message["role"] == "user" for message in plain)
        parts = [
            self._open(message, number) + message["content"] + self._close(message)
            for message, number in zip(plain, rounds, strict=True)
        ]
        if self.meta_instruction is not None and plain[0]["role"] != "system":
            parts.insert(0, self.system + self.meta_instruction + self.eosys)
        text = self.start + "".join(parts)
        if plain[-1]["role"] == "assistant":
            return text[: len(text) - len(self._close(plain[-1]))]
        return text + (self.assistant if self.prompt_end is None else self.prompt_end)

    def close(self) -> None:
        """Nothing is held."""

    def _lowered(self, messages: list[Message], tools: Sequence[Message]) -> list[Message]:
        if self.lower_tools is not None:
            return self.lower_tools(messages, tools)
        if tools:
            raise RequestError(f"the chat template {self.name!r} cannot present tools; send none", param="tools")
        return messages

    def _bare(self, text: str) -> str:
        if self.capability != "infilling":
            return text
        before, mark, behind = text.partition(FILL)
        if not mark:
            raise RequestError(f"an infilling prompt has {FILL} where the text is missing", param="prompt")
        return f"<PRE> {before} <SUF>{behind} <MID>"

    def _open(self, message: Message, number: int) -> str:
        role = message["role"]
        user = self.user.replace("{round}", str(number))
        known = {"system": self.system, "user": user, "assistant": self.assistant, "tool": self.tool}
        if role in known:
            return known[role]
        if not self.other_role:
            raise RequestError(
                f"the chat template {self.name!r} has no role {role!r}; it has {', '.join(known)}", param="messages"
            )
        return self.other_role.replace("{role}", role)

    def _close(self, message: Message) -> str:
        known = {"user": self.eoh, "assistant": self.eoa + self.separator, "tool": self.eotool}
        return known.get(message["role"], self.eosys)
