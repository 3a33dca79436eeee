"""Required, named and strict tool calls: whatever is drawn under the grammar is read back as calls the tools allow.

`jsonschema` judges the arguments; the dialects' own parsers, tested against published templates, read the texts.
"""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

import jsonschema
import pytest
from tests.support.drawing import SIZE, allowed
from tests.support.echo import byte_tokenizer

from tokenmill import find
from tokenmill.api.grammars import token_table
from tokenmill.api.parsers import REASONING, TOOLS, ParserNames
from tokenmill.api.toolgrammar import constrained
from tokenmill.errors import RequestError
from tokenmill.grammar.compiler import Compiler, Matcher
from tokenmill.parse.events import Event, ReasoningEvent, TextEvent, ToolCallEvent, joined
from tokenmill.types import GrammarSpec, TextRequest

DIALECTS = find.names(TOOLS)
WEATHER = {
    "type": "object", "required": ["city", "days"], "$defs": {"unit": {"enum": ["C", "F"]}},
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "北京"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"$ref": "#/$defs/unit"}, "exact": {"type": "boolean"},
    },
}  # fmt: skip
NOTE = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "maxLength": 20}}}
SCHEMAS: dict[str, dict[str, Any]] = {"weather": WEATHER, "note": NOTE, "now": {"type": "object", "properties": {}}}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMAS[name], **more}}


BOTH = (tool("weather"), tool("note"), {"type": "function", "function": {"name": "now"}})


TOKENIZER = byte_tokenizer()


@cache
def compiler() -> Compiler:
    return Compiler(token_table(TOKENIZER, (257,), SIZE))


@cache
def compiler_ends() -> tuple[int, ...]:
    return token_table(TOKENIZER, (257,), SIZE).end_ids


def say(matcher: Matcher, rng: Random) -> str | None:
    """A random answer, special tokens as their texts; None where it did not end in time."""
    said = bytearray()
    for spent in range(1500):
        tokens = allowed(matcher)
        assert tokens, "nothing is allowed"
        more = [token for token in tokens if token not in compiler_ends()]
        tokens = more if more and rng.random() < 0.5 and spent < 400 else tokens
        closing = [token for token in tokens if token >= 256 or chr(token) in '"}]<']
        token = rng.choice(closing if closing and rng.random() < (0.8 if spent > 60 else 0.3) else tokens)
        assert matcher.accept(token), "a token the mask allows is refused"
        if token in compiler_ends():
            return said.decode()
        said += TOKENIZER.vocabulary.token_text(token).encode() if token >= 256 else bytes([token])
    return None


def drawn(spec: GrammarSpec | None, seed: int) -> str:
    """An answer that ended; draws that went on for too long are drawn anew."""
    assert spec is not None
    rng = Random(seed)
    found = next(text for _ in range(20) if (text := say(compiler().compile(spec), rng)) is not None)
    return found


def read(names: ParserNames, text: str, inside: bool = False) -> list[Event]:
    events: list[Event] = [TextEvent(text)]
    parsers = [find.load(TOOLS, names.tools or "").ToolParser(BOTH)]
    if names.reasoning is not None:
        parsers.insert(0, find.load(REASONING, names.reasoning).ReasoningParser(inside))
    for parser in parsers:
        fed = [e for event in events for e in (parser.feed(event.text) if isinstance(event, TextEvent) else [event])]
        events = fed + parser.finish()
    return joined(events)


def calls_in(events: list[Event]) -> list[ToolCallEvent]:
    calls = [event for event in events if isinstance(event, ToolCallEvent)]
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    return calls


def wish(*tools: dict[str, Any], **fields: Any) -> TextRequest:
    return TextRequest("r", "hello", tools=tools, **fields)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_required_answers_are_calls_and_nothing_else(dialect: str) -> None:
    names = ParserNames(dialect)
    request = constrained(wish(*BOTH, tool_choice="required"), BOTH, names)
    seen = set()
    for seed in range(12):
        text = drawn(request.grammar, seed)
        events = read(names, text)
        calls = calls_in(events)
        assert calls and len(calls) == len(events), text
        seen |= {call.name for call in calls}
    assert len(seen) >= 2
    assert request.grammar is not None
    several = written(dialect, "now", "now")
    assert ends(matcher_at(request.grammar, several)), "several calls may come"
    assert [call.name for call in calls_in(read(names, several))] == ["now", "now"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_call_where_no_more_are_wanted_and_of_the_named_tool(dialect: str) -> None:
    names = ParserNames(dialect)
    shown = (tool("weather"),)
    request = constrained(wish(*BOTH, tool_choice="weather", parallel_tool_calls=False), shown, names)
    for seed in range(6):
        events = read(names, drawn(request.grammar, seed))
        assert [call.name for call in calls_in(events)] == ["weather"] and len(events) == 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_strict_tools_leave_words_free_but_no_call_is_broken(dialect: str) -> None:
    names = ParserNames(dialect)
    strict = (tool("weather", strict=True),)
    request = constrained(wish(*strict), strict, names)
    assert request.grammar is not None
    trigger = find.load(TOOLS, dialect).FRAME.trigger
    matcher = compiler().compile(request.grammar)
    for token in TOKENIZER.encode(f"Let me look. {trigger}", add_special_tokens=False):
        assert matcher.accept(token), "words and the beginning of a call are free"
    rng = Random(3)
    rest = next(text for _ in range(20) if (text := say(matcher_at(request.grammar, trigger), rng)) is not None)
    events = read(names, trigger + rest)
    assert calls_in(events)[0].name == "weather"


def written(dialect: str, *names: str) -> str:
    """Calls without arguments, as the dialect's frame has them."""
    module = find.load(TOOLS, dialect)
    parts = [module.call_parts(name, SCHEMAS[name]) for name in names]
    calls = ["".join(part if isinstance(part, str) else "{}" for part in call) for call in parts]
    return str(module.FRAME.open + module.FRAME.between.join(calls) + module.FRAME.close)


def ends(matcher: Matcher) -> bool:
    return any(token in compiler_ends() for token in allowed(matcher))


def matcher_at(spec: GrammarSpec, said: str) -> Any:
    matcher = compiler().compile(spec)
    for token in TOKENIZER.encode(said, add_special_tokens=False):
        assert matcher.accept(token)
    return matcher


@pytest.mark.parametrize(("inside", "options"), [(True, {}), (False, {"enable_thinking": False})])
def test_a_model_that_reasons_does_so_before_its_required_call(inside: bool, options: dict[str, Any]) -> None:
    names = ParserNames("hermes", "think_tags")
    request = constrained(wish(*BOTH, tool_choice="required", template_options=options), BOTH, names)
    said = "I think.\nYes</think>\n\n" if inside else "<think>I think.\nYes</think>\n\n"
    assert request.grammar is not None
    text = said + str(say(matcher_at(request.grammar, said), Random(1)))
    events = read(names, text, inside)
    assert events[0] == ReasoningEvent("I think.\nYes")
    assert calls_in(events) and len(calls_in(events)) == len(events) - 1


def test_auto_without_strict_tools_asks_for_no_grammar() -> None:
    assert constrained(wish(*BOTH), BOTH, ParserNames("hermes")).grammar is None
    form = GrammarSpec("json_object", "{}")
    strict = (tool("note", strict=True),)
    assert constrained(wish(*strict, grammar=form), strict, ParserNames("hermes")).grammar is form
    with pytest.raises(RequestError, match="no tools"):
        constrained(wish(tool_choice="required"), (), ParserNames("hermes"))
