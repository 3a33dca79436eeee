"""An answer that must be tool calls, or whose calls must be well-formed, as a grammar.

The text is a JSON object: `calls` [[part, ...], ...] (one list a tool), `open`, `between`, `close`, `trigger`,
`last` (parse/forms.py says what they are), `parallel` (more than one call may come), `free` (words may stand before
calls, or no call comes at all), and `think`: "", "inside" (the answer starts within reasoning) or "may" (it may begin
with it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenmill.grammar.lark import quoted, schema_text, spelled

SpecialIds = Mapping[str, int]
_TEXT = r"TEXT: /(.|\n)*/"
THINK, THOUGHT = "<think>", "</think>"


def calls_grammar(value: dict[str, Any], special_ids: SpecialIds) -> str:
    """Lark. `value` was made by api/toolgrammar.py, so its form is not checked again."""
    writer = _Writer(special_ids)
    calls = [writer.parts(parts) for parts in value["calls"]]
    more = f"({writer.text(value['between'])} call)*" if value["parallel"] else ""
    rules = [_TEXT, f"call: {' | '.join(calls)}"]
    close = writer.text(value["close"])
    if value["free"]:
        first, opened = _triggered(value, writer)
        rules += [f"first: {first}", f"block: {opened} first {more} {close}", *writer.until("begin", value["trigger"])]
        repeated = value["parallel"] and not value["last"]
        body = "block* rest" if repeated else "(block | rest)" if value["last"] else "block? rest"
        rules.append("rest: TEXT")
    else:
        body = f"{writer.text(value['open'])} call {more} {close}"
    rules.append(f"start: {_thinking(value['think'], writer, rules)} {body}")
    return "\n".join(rules)


def _triggered(value: dict[str, Any], writer: _Writer) -> tuple[str, str]:
    """(alternatives of the first call, what opens the block), without the trigger, which has been said already."""
    trigger, opened = value["trigger"], value["open"]
    if opened:
        return "call", f"begin {writer.text(opened.removeprefix(trigger))}"
    starts = [[parts[0].removeprefix(trigger), *parts[1:]] for parts in value["calls"]]
    return " | ".join(map(writer.parts, starts)), "begin"


def _thinking(how: str, writer: _Writer, rules: list[str]) -> str:
    if not how:
        return ""
    rules += [r"GAP: /\n{0,2}/", *writer.until("thought", THOUGHT)]
    return "thought GAP" if how == "inside" else f"({writer.text(THINK)} thought GAP)?"


class _Writer:
    """Parts as Lark expressions."""

    def __init__(self, special_ids: SpecialIds) -> None:
        self._special_ids = special_ids

    def text(self, text: str) -> str:
        return spelled(text, self._special_ids)

    def parts(self, parts: list[Any]) -> str:
        return " ".join(filter(None, map(self.part, parts)))

    def part(self, part: Any) -> str:
        if isinstance(part, str):
            return self.text(part)
        if "schema" in part:
            return f"%json {schema_text(part['schema'])}"
        if "maybe" in part:
            return f"({self.parts(part['maybe'])})?"
        if "one_of" in part:
            return f"({' | '.join(map(quoted, part['one_of']))})"
        return f"/[^{part['words']}]*/"

    def until(self, name: str, end: str) -> list[str]:
        """A rule for any words up to and with `end`."""
        special = next((word for word in self._special_ids if word and end.startswith(word)), None)
        # A special token cannot be part of words, so nothing has to look for it.
        return [f"{name}: TEXT {self.text(end)}" if special else f"{name}[lazy]: TEXT {quoted(end)}"]


def call_text(value: dict[str, Any]) -> str:
    """What a GrammarSpec of kind tool_calls holds."""
    return json.dumps(value, ensure_ascii=False)
