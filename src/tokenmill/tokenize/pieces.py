"""How a token's name in tokenizer.json becomes bytes: the file's `decoder` read as a rule per token.

Covers the decoders language models use: ByteLevel, and the sentencepiece chain Replace, ByteFallback, Fuse, Strip
(or Metaspace). Anything else is refused by name, since a rule that looks at neighbouring tokens cannot be streamed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenmill.errors import FormatError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"


@dataclass(frozen=True)
class PieceRule:
    to_bytes: Callable[[str], bytes]
    strips_first_space: bool = False


def piece_rule(decoder: dict[str, Any] | None) -> PieceRule:
    """The rule of a tokenizer.json `decoder`. Raises FormatError where it cannot be applied token by token."""
    steps = _flatten(decoder)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return PieceRule(byte_level())
    if not kinds or any(kind not in ("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace") for kind in kinds):
        raise FormatError(
            f"tokenizer.json has decoder {'+'.join(kinds) or 'none'}; supported are ByteLevel and sentencepiece's "
            "Replace+ByteFallback+Fuse+Strip or Metaspace"
        )
    return PieceRule(_sentencepiece(steps), any(_strips(step) for step in steps))


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if not decoder:
        return []
    if decoder["type"] == "Sequence":
        return [inner for step in decoder["decoders"] for inner in _flatten(step)]
    return [decoder]


def _strips(step: dict[str, Any]) -> bool:
    if step["type"] == "Strip":
        if step.get("content") != " " or step.get("start") != 1 or step.get("stop"):
            raise FormatError(f"tokenizer.json strips {step!r} when decoding; supported is one leading space")
        return True
    return bool(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")


def _sentencepiece(steps: list[dict[str, Any]]) -> Callable[[str], bytes]:
    pairs = [_replacement(step) for step in steps if step["type"] in ("Replace", "Metaspace")]
    byte_fallback = any(step["type"] == "ByteFallback" for step in steps)

    def to_bytes(name: str) -> bytes:
        match = _BYTE.fullmatch(name) if byte_fallback else None
        if match:
            return bytes([int(match[1], 16)])
        for old, new in pairs:
            name = name.replace(old, new)
        return name.encode("utf-8")

    return to_bytes


def _replacement(step: dict[str, Any]) -> tuple[str, str]:
    if step["type"] == "Metaspace":
        return step.get("replacement", SPACE), " "
    pattern = step["pattern"].get("String")
    if pattern is None:
        raise FormatError(f"tokenizer.json replaces the pattern {step['pattern']!r} when decoding; only plain text is")
    return pattern, step["content"]


def byte_level() -> Callable[[str], bytes]:
    """The byte alphabet of GPT-2: printable Latin-1 stands for itself, the other bytes for U+0100 onwards in order."""
    table = {char: byte for byte, char in byte_alphabet().items()}

    def to_bytes(name: str) -> bytes:
        try:
            return bytes([table[char] for char in name])
        except KeyError:
            # An added token is plain text and may hold characters outside the alphabet.
            return name.encode("utf-8")

    return to_bytes


def byte_alphabet() -> dict[int, str]:
    """Byte to the character that stands for it in a byte-level vocabulary."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in alphabet]
    alphabet.update({byte: chr(0x100 + index) for index, byte in enumerate(others)})
    return alphabet
