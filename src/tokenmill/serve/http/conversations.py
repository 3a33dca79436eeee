"""Conversations that a server keeps for its interactive clients: bounded in number, the ones used last stay."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tokenmill.types import Message

SESSIONS = 1024


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: tuple[Message, ...] = ()
    tokens: int = 0


class Conversations:
    """By session id; None is nobody's and holds nothing."""

    def __init__(self, most: int = SESSIONS) -> None:
        self._most = most
        self._kept: OrderedDict[int, Conversation] = OrderedDict()

    def get(self, session: int | None) -> Conversation:
        return Conversation() if session is None else self._kept.get(session, Conversation())

    def keep(self, session: int | None, messages: tuple[Message, ...], tokens: int) -> None:
        if session is None:
            return
        self._kept[session] = Conversation(messages, tokens)
        self._kept.move_to_end(session)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def forget(self, session: int | None) -> None:
        if session is not None:
            self._kept.pop(session, None)
