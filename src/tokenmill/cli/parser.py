"""argparse, with the habits LMDeploy's users have: `--a-b` is `--a_b`, and a switch may have a value.

`--flag`, `--flag True`, `--flag=false` and `--no-flag` all say what they say. Errors are one line and end with 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")


def boolean(text: str) -> bool:
    """The value of a switch."""
    if text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


class Parser(argparse.ArgumentParser):
    """One verb's arguments. `add_switch` makes a boolean option."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)
        self.switches: set[str] = set()

    def add_switch(self, name: str, help: str, default: bool | None = False) -> None:
        """`name` with its dashes; in the namespace it is True, False or `default`."""
        self.switches.add(name)
        self.add_argument(name, type=boolean, default=default, metavar="BOOL", help=f"{help} (a switch)")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return super().parse_known_args(self.normal(list(sys.argv[1:] if args is None else args)), namespace)

    def normal(self, argv: list[str]) -> list[str]:
        """`argv` with dashes in option names and every switch in the form `--name=value`."""
        out: list[str] = []
        rest = iter(range(len(argv)))
        for i in rest:
            word = argv[i]
            if word == "--":
                return out + argv[i:]
            name, equals, value = word.partition("=")
            if not name.startswith("--"):
                out.append(word)
                continue
            name = name.replace("_", "-")
            if name in self.switches and not equals:
                has_value = i + 1 < len(argv) and argv[i + 1].lower() in TRUE + FALSE
                out.append(f"{name}={argv[next(rest)] if has_value else 'true'}")
            elif f"--{name[5:]}" in self.switches and name.startswith("--no-") and not equals:
                out.append(f"--{name[5:]}=false")
            else:
                out.append(name + equals + value)
        return out

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")
