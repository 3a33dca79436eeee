"""What a checkpoint folder says about text: special tokens, end-of-text ids, chat templates, sampling defaults.

Reads only tokenizer_config.json, special_tokens_map.json, added_tokens.json, config.json, generation_config.json and
chat_template.*; never code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import FormatError
from tokenmill.tokenize.vocabulary import AddedToken

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file. Raises FormatError where it is no JSON object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path.name} in {path.parent.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} in {path.parent.name} holds a {type(value).__name__}; it must be an object")
    return value


@dataclass(frozen=True)
class TextFolder:
    """The text side of a checkpoint folder."""

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    tokenizer_config: dict[str, Any]
    special_tokens_map: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> TextFolder:
        names = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
        return cls(path, *(read_json(path / name) for name in names))

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of config.json: nested in vision-language folders."""
        for key in ("text_config", "llm_config", "language_config"):
            nested = self.config.get(key)
            if isinstance(nested, dict):
                return nested
        return self.config

    def special_tokens(self) -> dict[str, str]:
        """`bos_token` and its kin by name, as the chat template sees them."""
        merged = {**self.special_tokens_map, **self.tokenizer_config}
        found = {name: _token_text(merged.get(name)) for name in _NAMED}
        return {name: text for name, text in found.items() if text is not None}

    def eos_ids(self) -> tuple[int, ...]:
        """End-of-text ids of config.json and generation_config.json, each an int or a list there."""
        ids: list[int] = []
        for source in (self.text_config, self.generation):
            value = source.get("eos_token_id")
            ids += value if isinstance(value, list) else [value] if isinstance(value, int) else []
        return tuple(dict.fromkeys(ids))

    def chat_templates(self) -> dict[str, str]:
        """Jinja templates by name; the usual one is `default`. A chat_template.jinja file goes before the config's."""
        found = _named_templates(self.tokenizer_config.get("chat_template"))
        found.update(_named_templates(read_json(self.path / "chat_template.json").get("chat_template")))
        file = self.path / "chat_template.jinja"
        if file.is_file():
            found["default"] = file.read_text(encoding="utf-8")
        extra = self.path / "additional_chat_templates"
        if extra.is_dir():
            found.update({f.stem: f.read_text(encoding="utf-8") for f in sorted(extra.glob("*.jinja"))})
        return found

    def added_tokens(self) -> list[AddedToken]:
        """Tokens of `added_tokens_decoder` and added_tokens.json, by id."""
        found: dict[int, AddedToken] = {}
        for text, token_id in read_json(self.path / "added_tokens.json").items():
            found[int(token_id)] = AddedToken(text, int(token_id), special=text in self._special_texts())
        for key, entry in self.tokenizer_config.get("added_tokens_decoder", {}).items():
            found[int(key)] = AddedToken(
                entry["content"], int(key), bool(entry.get("special")), bool(entry.get("lstrip")),
                bool(entry.get("rstrip")),
            )
        return [found[token_id] for token_id in sorted(found)]

    def _special_texts(self) -> set[str]:
        merged = {**self.special_tokens_map, **self.tokenizer_config}
        more = merged.get("additional_special_tokens") or []
        texts = {_token_text(entry) for entry in more if not isinstance(more, dict)}
        return {text for text in texts if text is not None} | set(self.special_tokens().values())


def _token_text(entry: Any) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def _named_templates(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        return {entry["name"]: entry["template"] for entry in value}
    return dict(value) if isinstance(value, dict) else {}
