"""`--chat-template` and ChatTemplateConfig as a `TemplateChoice`: a builtin name, a JSON file or text, a Jinja file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.tokenize.choose import TemplateChoice
from tokenmill.tokenize.template import TemplatePieces

MAX_FILE_BYTES = 1 << 20
_PIECES = tuple(TemplatePieces.__dataclass_fields__)
# Keys of LMDeploy's JSON form that choose a template or a checkpoint's own and are no piece of text.
_OTHER = ("model_name", "model_path")


def template_choice(wish: str | None) -> TemplateChoice:
    """What a user typed. Raises ConfigError where it names no file, or the file is no template."""
    if wish is None:
        return TemplateChoice()
    text = wish.strip()
    if text.startswith("{"):
        return _from_json(text, "the chat template")
    if text.endswith(".json"):
        return _from_json(_read(text), text)
    if text.endswith((".jinja", ".jinja2", ".j2")):
        return TemplateChoice(jinja=_read(text))
    return TemplateChoice(name=text)


def choice_of(value: dict[str, Any], where: str) -> TemplateChoice:
    """A JSON form's name and pieces; None values keep the builtin's."""
    unknown = sorted(set(value) - {*_PIECES, *_OTHER})
    if unknown:
        raise ConfigError(f"{where} has unknown keys {', '.join(unknown)}; known are {', '.join((*_OTHER, *_PIECES))}")
    pieces = {key: _piece(where, key, value[key]) for key in _PIECES if value.get(key) is not None}
    name = value.get("model_name")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{where}: model_name is {name!r}; it must be a text")
    return TemplateChoice(name=name, pieces=TemplatePieces(**pieces))


def _piece(where: str, key: str, value: Any) -> Any:
    if key == "stop_words":
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) and word for word in value):
            raise ConfigError(f"{where}: stop_words is {value!r}; it must be a list of texts")
        return tuple(value)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key} is {value!r}; it must be a text")
    return value


def _from_json(text: str, where: str) -> TemplateChoice:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} holds a {type(value).__name__}; it must be an object")
    return choice_of(value, where)


def _read(path: str) -> str:
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} has {file.stat().st_size} bytes; a chat template has at most {MAX_FILE_BYTES}")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the chat template {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the chat template {path} is no UTF-8 text") from None
