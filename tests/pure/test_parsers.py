"""Parsers of answers: what each dialect means, and that no cut of the text changes what is understood."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill import find
from tokenmill.parse.events import Event, Parser, ReasoningEvent, TextEvent, ToolCallEvent, joined
from tokenmill.parse.reasoning import deepseek_v3, deepseek_v32, think_tags
from tokenmill.parse.tools import hermes, internlm2

TOOLS: tuple[dict[str, Any], ...] = (
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"},
        "tags": {"type": "array"}, "zip": {"type": "string"}}}}},
)  # fmt: skip
ARGUMENTS = {"city": "北京 \"x\"", "days": 3, "exact": True, "tags": ["a", {"b": None}], "zip": "0123"}
BODY = json.dumps(ARGUMENTS, ensure_ascii=False)
CALL = json.dumps({"name": "weather", "arguments": ARGUMENTS}, ensure_ascii=False)
XML_VALUES = {"city": ARGUMENTS["city"], "days": "3", "exact": "true", "tags": '["a", {"b": null}]', "zip": "0123"}
D = "｜DSML｜"


def _glm(values: dict[str, str]) -> str:
    pairs = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in values.items())
    return f"<tool_call>weather\n{pairs}</tool_call>"


def _coder(values: dict[str, str]) -> str:
    pairs = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function=weather>\n{pairs}</function>\n</tool_call>"


def _dsml(block: str) -> str:
    pairs = "".join(
        f'<{D}parameter name="{k}" string="{"true" if isinstance(ARGUMENTS[k], str) else "false"}">{v}</{D}parameter>\n'
        for k, v in XML_VALUES.items()
    )
    return f'<{D}{block}>\n<{D}invoke name="weather">\n{pairs}</{D}invoke>\n</{D}{block}>'


SPOKEN = {
    "internlm2": [f"<|action_start|><|plugin|>\n{CALL}<|action_end|>", f"<|action_start|><|plugin|>{CALL}\n"],
    "hermes": [f"<tool_call>\n{CALL}\n</tool_call>", f"<tool_call>{CALL}"],
    "llama3": [f"<|python_tag|>{CALL.replace('arguments', 'parameters')}", f"<function=weather>{BODY}</function>"],
    "mistral": [f"[TOOL_CALLS] [{CALL}]", f"[TOOL_CALLS]weather[ARGS]{BODY}"],
    "glm47": [_glm(XML_VALUES)],
    "qwen3coder": [_coder(XML_VALUES)],
    "deepseek_v3": [
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n" + BODY
        + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>" + BODY
        + "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ],
    "deepseek_v32": [_dsml("function_calls"), _dsml("tool_calls")],
}  # fmt: skip
SPEECHES = [(name, text) for name, texts in SPOKEN.items() for text in texts]


def parser_of(name: str) -> Parser:
    parser: Parser = find.load("tokenmill.parse.tools", name).ToolParser(TOOLS)
    return parser


def read(parser: Parser, pieces: list[str]) -> list[Event]:
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed(piece)
    return joined(events + parser.finish())


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def test_every_dialect_is_spoken_here() -> None:
    assert set(SPOKEN) == set(find.names("tokenmill.parse.tools"))


@pytest.mark.parametrize(("name", "text"), SPEECHES)
def test_a_call_is_understood(name: str, text: str) -> None:
    [event] = read(parser_of(name), [text])
    assert isinstance(event, ToolCallEvent) and event.name == "weather"
    assert json.loads(event.arguments) == ARGUMENTS


@pytest.mark.parametrize(("name", "text"), SPEECHES)
def test_words_before_a_call_are_text(name: str, text: str) -> None:
    words, call = read(parser_of(name), ["Let me see: 5 < 6 [ok] {x}\n\n" + text])
    assert words == TextEvent("Let me see: 5 < 6 [ok] {x}")
    assert isinstance(call, ToolCallEvent)


@pytest.mark.parametrize(("name", "text"), SPEECHES)
def test_every_cut_of_a_call_is_the_same(name: str, text: str) -> None:
    text = "一 <" + text + "\n"
    whole = read(parser_of(name), [text])
    assert read(parser_of(name), list(text)) == whole
    for place in range(1, len(text)):
        assert read(parser_of(name), [text[:place], text[place:]]) == whole


@pytest.mark.parametrize("name", sorted(SPOKEN))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_text_any_cut(name: str, data: st.DataObject) -> None:
    """Tags in any order, whole and broken, JSON and rubbish: the events do not depend on the cut, nothing is raised."""
    tags = [*find.load("tokenmill.parse.tools", name).TAGS, "<function=f>", "</function>", "<function=weather>"]
    words = st.sampled_from([*tags, *SPOKEN[name], CALL, f"[{CALL}]", '{"name": 1}', *"{]a<\n é"])
    text = "".join(data.draw(st.lists(words, max_size=8)))
    places = data.draw(st.lists(st.integers(0, max(len(text), 1)), max_size=12))
    assert read(parser_of(name), cut(text, places)) == read(parser_of(name), [text])


@pytest.mark.parametrize("name", sorted(SPOKEN))
@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="ab <>[]{}\n\"é二", max_size=40))
def test_text_without_tags_stays_as_it_is(name: str, text: str) -> None:
    assert read(parser_of(name), cut(text, [3, 9])) == ([TextEvent(text)] if text else [])


def test_several_calls_and_words_behind() -> None:
    text = f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>\nDone. "
    events = read(hermes.ToolParser(), [text])
    assert [type(e) for e in events] == [ToolCallEvent, ToolCallEvent, TextEvent]
    assert events[-1] == TextEvent("\nDone. ")
    mistral = read(parser_of("mistral"), [f"[TOOL_CALLS]a[ARGS]{{}}[TOOL_CALLS]b[ARGS]{BODY}"])
    assert [e.name for e in mistral if isinstance(e, ToolCallEvent)] == ["a", "b"]
    llama = read(parser_of("llama3"), [f"{CALL}; {CALL}"])
    assert [e.name for e in llama if isinstance(e, ToolCallEvent)] == ["weather", "weather"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>\n{broken\n</tool_call>"),
        ("hermes", '<tool_call>{"name": 5}</tool_call> and on'),
        ("hermes", "<tool_call>" + "[" * 5000 + "</tool_call>"),
        ("internlm2", "<|action_start|><|interpreter|>\nprint(1)<|action_end|>"),
        ("llama3", '{"not": "a call"}'),
        ("llama3", "<|python_tag|>print(1)"),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("glm47", "<tool_call>two words</tool_call>"),
        ("qwen3coder", "<tool_call><function=f><parameter=a>1</function></tool_call>"),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>hm<｜tool▁calls▁end｜>"),
        ("deepseek_v32", f"<{D}tool_calls>hm</{D}tool_calls>"),
    ],
)
def test_what_is_no_call_stays_text(name: str, text: str) -> None:
    assert read(parser_of(name), list(text)) == [TextEvent(text)]


def test_parameters_is_taken_for_arguments_and_text_as_it_is() -> None:
    [call] = read(internlm2.ToolParser(), ['<|action_start|><|plugin|>{"name": "f", "arguments": "{\\"a\\": 1}"}'])
    assert call == ToolCallEvent("f", '{"a": 1}')
    [bare] = read(hermes.ToolParser(), ['<tool_call>{"name": "f"}</tool_call>'])
    assert bare == ToolCallEvent("f", "{}")


THOUGHTS = [
    ("<think>\nhm\n</think>\n\nYes.", [ReasoningEvent("hm"), TextEvent("Yes.")], True),
    ("hm\n\nmore\n</think>Yes.", [ReasoningEvent("hm\n\nmore"), TextEvent("Yes.")], True),
    ("never ends\n", [ReasoningEvent("never ends")], True),
    ("Yes </think> no", [TextEvent("Yes </think> no")], False),
    ("<think>a</think>b<think>c</think>", [ReasoningEvent("a"), TextEvent("b<think>c</think>")], False),
    ("  <think>x < y</think>", [ReasoningEvent("x < y")], False),
    ("<thi", [ReasoningEvent("<thi")], True),
    ("", [], True),
]


@pytest.mark.parametrize(("text", "expected", "inside"), THOUGHTS)
def test_reasoning(text: str, expected: list[Event], inside: bool) -> None:
    assert read(think_tags.ReasoningParser(inside), [text]) == expected
    for place in range(1, len(text)):
        assert read(think_tags.ReasoningParser(inside), [text[:place], text[place:]]) == expected


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.sampled_from(["<think>", "</think>", "<thin", "think>", "\n", " ", "a", "二", "<"]), max_size=10),
    places=st.lists(st.integers(0, 60), max_size=10),
    inside=st.booleans(),
)
def test_reasoning_any_cut(words: list[str], places: list[int], inside: bool) -> None:
    text = "".join(words)
    events = read(think_tags.ReasoningParser(inside), cut(text, places))
    assert events == read(think_tags.ReasoningParser(inside), [text])
    assert [type(e) for e in events] in ([], [TextEvent], [ReasoningEvent], [ReasoningEvent, TextEvent])


def test_where_reasoning_starts() -> None:
    assert think_tags.starts_inside({}) and not think_tags.starts_inside({"enable_thinking": False})
    assert not deepseek_v3.starts_inside({}) and deepseek_v3.starts_inside({"enable_thinking": True})
    assert deepseek_v32.starts_inside({"thinking": True}) and not deepseek_v32.starts_inside({})
