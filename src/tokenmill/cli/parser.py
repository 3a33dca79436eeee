"""argparse, with the habits LMDeploy's users have: `--a-b` is `--a_b`, and a switch may have a value.

`--flag`, `--flag True`, `--flag=false` and `--no-flag` all say what they say. `--object.a.b 1` is one entry of an
option that takes a JSON object. Errors are one line and end with 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, NoReturn

TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")


def boolean(text: str) -> bool:
    """The value of a switch."""
    if text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def entry(path: str, text: str) -> str:
    """`a.b` and a value, JSON or plain text, as a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    for key in reversed(path.split(".")):
        value = {key: value}
    return json.dumps(value)


class Parser(argparse.ArgumentParser):
    """One verb's arguments. `add_switch` makes a boolean option."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)
        self.switches: set[str] = set()
        self.objects: set[str] = set()

    def add_switch(self, name: str, help: str, default: bool | None = False) -> None:
        """`name` with its dashes; in the namespace it is True, False or `default`."""
        self.switches.add(name)
        self.add_argument(name, type=boolean, default=default, metavar="BOOL", help=f"{help} (a switch)")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return super().parse_known_args(self.normal(list(sys.argv[1:] if args is None else args)), namespace)

    def normal(self, argv: list[str]) -> list[str]:
        """`argv` with dashes in option names and every switch in the form `--name=value`."""
        out: list[str] = []
        words = deque(argv)
        while words:
            word = words.popleft()
            if word == "--":
                return [*out, word, *words]
            option = self.option(word, words) if word.startswith("--") else word
            if option in self.switches:
                has_value = words and words[0].lower() in TRUE + FALSE
                option += f"={words.popleft() if has_value else 'true'}"
            out.append(option)
        return out

    def option(self, word: str, words: deque[str]) -> str:
        """One option as argparse knows it; takes the value of a dotted one from `words`."""
        name, equals, value = word.partition("=")
        first, dot, path = name.partition(".")
        first = first.replace("_", "-")
        if dot and first in self.objects:
            value = value if equals else words.popleft() if words else ""
            return f"{first}={entry(path, value)}"
        if not equals and f"--{first[5:]}" in self.switches and first.startswith("--no-"):
            return f"--{first[5:]}=false"
        return f"{first}{dot}{path}{equals}{value}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")
