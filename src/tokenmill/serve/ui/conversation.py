"""A conversation in the terminal, without the terminal: messages, settings and slash commands as plain data.

`Talk` is what answers: a `TextEngine` here (`cli/chat.py`) or a server over HTTP (`talk.py`). A command gives lines to
show; nothing here prints, reads or knows a model.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from tokenmill.errors import RequestError, TokenmillError
from tokenmill.vision.local import as_data_url

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are drawn. The first numbers are those of LMDeploy's chat; None is the model's own."""

    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 40
    repetition_penalty: float = 1.0
    max_new_tokens: int = 1024
    seed: int | None = None


# Lowest and highest value of a setting.
BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.001, 1.0),
    "top_k": (0, 100_000),
    "repetition_penalty": (0.01, 10.0),
    "max_new_tokens": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer. The last one has `finish`: stop, length, abort. `echo` is shown and is no part of it."""

    text: str = ""
    finish: str | None = None
    completion_tokens: int = 0
    echo: str = ""


class Talk(Protocol):
    """Something that answers. Closing the iterator early stops the answer."""

    name: str

    def answer(self, messages: tuple[Message, ...], settings: Settings) -> AsyncIterator[Piece]: ...

    async def close(self) -> None: ...


@dataclass
class Conversation:
    """What has been said. `system` is kept over a reset; `images` go with the next question."""

    system: str = ""
    settings: Settings = Settings()
    turns: list[Message] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def messages(self) -> tuple[Message, ...]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return (*first, *self.turns)

    def say(self, text: str) -> None:
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        content = [*pictures, {"type": "text", "text": text}] if pictures else text
        self.images = []
        self.turns.append({"role": "user", "content": content})

    def answered(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def take_back(self) -> str | None:
        """Removes the last question with its answer and gives the question."""
        while self.turns:
            turn = self.turns.pop()
            if turn["role"] == "user":
                return words_of(turn)
        return None


def words_of(message: Message) -> str:
    """A message's text; `[image]` stands for each picture."""
    content = message["content"]
    if not isinstance(content, list):
        return str(content)
    return " ".join(str(part["text"]) if part.get("type") == "text" else "[image]" for part in content)


def parse_setting(name: str, text: str) -> int | float | None:
    """A setting's value from what was typed. Raises RequestError with the bounds."""
    if name not in BOUNDS:
        raise RequestError(f"there is no setting {name!r}; there are {', '.join(BOUNDS)}")
    if name == "seed" and text.lower() == "none":
        return None
    low, high = BOUNDS[name]
    whole = name in ("top_k", "max_new_tokens", "seed")
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise RequestError(f"{name} is {text!r}; it must be a {'whole ' if whole else ''}number") from None
    if not low <= value <= high:
        raise RequestError(f"{name} is {text}; it must lie between {low:g} and {high:g}")
    return value


def with_setting(settings: Settings, name: str, text: str) -> Settings:
    """The settings with one of them as typed. Raises RequestError with the bounds."""
    changes: dict[str, Any] = {name: parse_setting(name, text)}
    return replace(settings, **changes)


def _help(_: Conversation, __: str) -> list[str]:
    return [
        "exit                  leave",
        "end, /reset           forget the conversation and start afresh",
        *(f"{f'/{name} {usage}':<21} {text}" for name, (_, usage, text) in COMMANDS.items() if name != "reset"),
        "Ctrl-C stops an answer; an empty line ends your input.",
    ]


def _system(talk: Conversation, rest: str) -> list[str]:
    talk.system = rest
    talk.turns.clear()
    return ["the system message is set; the conversation starts afresh" if rest else "no system message"]


def _image(talk: Conversation, rest: str) -> list[str]:
    """A file is read now and sent as it is; the server fetches URLs, where it may."""
    if not rest:
        raise RequestError("write /image PATH or /image URL")
    talk.images.append(rest if rest.startswith(("http://", "https://", "data:")) else as_data_url(rest))
    return [f"{len(talk.images)} image{'s' if len(talk.images) > 1 else ''} with your next message"]


def _reset(talk: Conversation, _: str) -> list[str]:
    talk.turns.clear()
    talk.images.clear()
    return ["the conversation starts afresh"]


def _set(talk: Conversation, rest: str) -> list[str]:
    words = rest.replace("=", " ").split()
    if len(words) == 2:
        talk.settings = with_setting(talk.settings, words[0].replace("-", "_"), words[1])
    elif words:
        raise RequestError("write /set NAME VALUE, for example /set temperature 0.2")
    return [f"{f.name:<20} {getattr(talk.settings, f.name)}" for f in fields(talk.settings)]


def _save(talk: Conversation, rest: str) -> list[str]:
    path = Path(rest or "conversation.json").expanduser()
    try:
        path.write_text(json.dumps(list(talk.messages()), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from None
    return [f"saved {len(talk.turns)} messages to {path}"]


def _load(talk: Conversation, rest: str) -> list[str]:
    path = Path(rest or "conversation.json").expanduser()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as a saved conversation: {error}") from None
    messages = found if isinstance(found, list) else []
    if not messages or not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages):
        raise RequestError(f"{path} holds no list of messages with role and content")
    talk.system = "\n".join(str(m["content"]) for m in messages if m["role"] == "system")
    talk.turns = [m for m in messages if m["role"] != "system"]
    return [f"loaded {len(talk.turns)} messages from {path}"]


def _show(talk: Conversation, _: str) -> list[str]:
    return [f"{m['role']}: {words_of(m)}" for m in talk.messages()] or ["nothing has been said"]


Command = Callable[[Conversation, str], list[str]]
COMMANDS: dict[str, tuple[Command, str, str]] = {
    "help": (_help, "", "this list"),
    "image": (_image, "PATH|URL", "show the model a picture with your next message"),
    "system": (_system, "TEXT", "set the system message (without text: none)"),
    "reset": (_reset, "", "forget the conversation"),
    "set": (_set, "NAME VALUE", "change a setting; without a name: show them"),
    "show": (_show, "", "show the conversation"),
    "save": (_save, "[FILE]", "write the conversation as JSON"),
    "load": (_load, "[FILE]", "go on with a saved conversation"),
}


def run_command(talk: Conversation, line: str) -> list[str]:
    """Runs `/name rest`. Gives the lines to show; an unknown command or a bad value is one of them, never raised."""
    name, _, rest = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        return [f"there is no /{name}; /help lists what there is"]
    try:
        return COMMANDS[name][0](talk, rest.strip())
    except TokenmillError as error:
        return [f"error: {error}"]
