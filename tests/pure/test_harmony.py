"""Harmony, GPT-OSS's speech: prompts as its published chat template writes them, answers as its guide describes them.

The expected prompts are written by hand from the published template's rules, white space included.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.api.parsers import parser_names
from tokenmill.api.thinking import thinking_of
from tokenmill.errors import ConfigError, RequestError
from tokenmill.parse.events import Event, ReasoningEvent, TextEvent, ToolCallEvent, joined
from tokenmill.parse.reasoning import harmony as channels
from tokenmill.tokenize.chat import harmony
from tokenmill.tokenize.choose import TemplateChoice, builtin, choose_template
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.naming import template_of
from tokenmill.tokenize.template import TemplatePieces
from tokenmill.types import TextRequest

HI = {"role": "user", "content": "Hi"}
SYSTEM = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    "Current date: 2025-06-28\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be "
    "included for every message."
)
WITH_TOOLS = SYSTEM + "\nCalls to these tools must go to the commentary channel: 'functions'.<|end|>"
ASKED = "<|start|>user<|message|>Hi<|end|><|start|>assistant"
# A parameter's schema, and its line in the listing.
LINES: list[tuple[dict[str, Any], str]] = [
    ({"type": "string", "description": "The city"}, "// The city\nx?: string,\n"),
    ({"type": "string", "enum": ["a", "b"], "default": "a"}, 'x?: "a" | "b", // default: a,\n'),
    ({"type": "string", "default": "a", "nullable": True}, 'x?: string | null, // default: "a",\n'),
    ({"type": "integer", "default": 3}, "x?: number, // default: 3,\n"),
    ({"type": "boolean", "default": True}, "x?: boolean, // default: true,\n"),
    ({"type": "array", "items": {"type": "integer"}, "nullable": True}, "x?: number[] | null,\n"),
    ({"type": "array"}, "x?: any[],\n"),
    ({"type": ["string", "null"]}, "x?: string | null,\n"),
    ({"type": "object"}, "x?: object,\n"),
    ({"type": "object", "properties": {"k": {"type": "number"}, "l": {}}, "required": ["k"]},
     "x?: {\nk: \n                number, l?: \n                any},\n"),
    ({"type": "array", "items": {"type": "object", "properties": {"long": {"type": "string"}, "longer": {}}}},
     "x?: any[],\n"),
    ({"oneOf": [{"type": "string", "description": "d"}, {"type": "number", "default": 1}]},
     "x?: string// d | \nnumber                    // default: 1,\n"),
    ({"anyOf": [{"type": "string"}]}, "x?: any,\n"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harmony, "today", lambda: "2025-06-28")


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


def render(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = (), **options: Any) -> str:
    return builtin("gpt-oss").render(messages, tools, options)


def test_the_system_text_is_the_developers() -> None:
    assert render(HI) == SYSTEM + "<|end|>" + ASKED
    developer = "<|start|>developer<|message|># Instructions\n\nBe kind.<|end|>"
    for role in ("system", "developer"):
        assert render({"role": role, "content": "Be kind."}, HI) == SYSTEM + "<|end|>" + developer + ASKED
    assert "Reasoning: high\n" in render(HI, reasoning_effort="high")
    assert render(HI, model_identity="I").startswith("<|start|>system<|message|>I\nKnowledge")
    pieces = builtin("harmony").override(TemplatePieces(meta_instruction="Be kind."))
    assert pieces.render([HI], (), {}) == SYSTEM + "<|end|>" + developer + ASKED


@pytest.mark.parametrize(("schema", "line"), LINES)
def test_tools_are_typescript(schema: dict[str, Any], line: str) -> None:
    tools = (tool("now"), tool("f", {"type": "object", "properties": {"x": schema}}))
    listing = (
        "<|start|>developer<|message|>\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n// Does now.\n"
        f"type now = () => any;\n\n// Does f.\ntype f = (_: {{\n{line}}}) => any;\n\n}} // namespace functions<|end|>"
    )
    assert render(HI, tools=tools) == WITH_TOOLS + listing + ASKED


def test_thoughts_stay_only_until_there_is_an_answer() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "北"}'}}
    asked = [
        HI, {"role": "assistant", "content": "Yes", "reasoning_content": "hm"}, HI,
        {"role": "assistant", "content": None, "reasoning_content": "need f", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": '{"t": 2}'},
    ]  # fmt: skip
    user = "<|start|>user<|message|>Hi<|end|>"
    before = user + "<|start|>assistant<|channel|>final<|message|>Yes<|end|>" + user
    thought = "<|start|>assistant<|channel|>analysis<|message|>need f<|end|>"
    called = '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"x": "北"}<|call|>'
    result = '<|start|>functions.f to=assistant<|channel|>commentary<|message|>"{\\"t\\": 2}"<|end|>'
    assert render(*asked) == SYSTEM + "<|end|>" + before + thought + called + result + "<|start|>assistant"
    answered = [*asked, {"role": "assistant", "content": "2"}]
    begun = SYSTEM + "<|end|>" + before + called + result + "<|start|>assistant<|channel|>final<|message|>2"
    assert render(*answered) == begun
    assert render(*answered, HI) == begun + "<|end|>" + ASKED


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(RequestError, match="follows no tool call"):
        render(HI, {"role": "tool", "content": "x"})
    with pytest.raises(RequestError, match="at the start of a conversation only"):
        render(HI, {"role": "system", "content": "x"})
    with pytest.raises(RequestError, match="builtin_tools"):
        render(HI, builtin_tools=["python"])
    with pytest.raises(ConfigError, match="no piece 'user'"):
        builtin("harmony").override(TemplatePieces(user="U"))


class Tokens:
    """A vocabulary of GPT-OSS's special tokens."""

    def token_id(self, text: str) -> int | None:
        return 7 if text in ("<|return|>", "<|end|>", *channels.TAGS) else None


def test_a_closed_thought_ends_no_answer(tmp_path: Path) -> None:
    """`<|end|>` stands behind a thought, too: a folder's own template must not make it a stop word."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}))
    vocabulary: Any = Tokens()
    own = choose_template(TemplateChoice(), TextFolder.read(tmp_path), vocabulary)
    assert own.name == "harmony" and own.stop_words == ("<|return|>", "<|call|>") and not own.special_tokens
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|start|>{{ m.role }}<|channel|>final<|message|>{{ m.content }}<|end|>{% endfor %}"
        "{% if false %}<|call|>{% endif %}"
    )
    jinja = choose_template(TemplateChoice(), TextFolder.read(tmp_path), vocabulary)
    jinja.close()
    assert jinja.name == "hf" and jinja.stop_words == ("<|call|>",)
    assert parser_names(None, None, vocabulary).reasoning == template_of("openai/gpt-oss-20b") == "harmony"


def test_a_budget_of_thought_is_refused_and_none_is_taken_for_one() -> None:
    """No single token ends a thought: `<|message|>` must not be forced as if it did."""
    vocabulary: Any = Tokens()
    names = parser_names(None, None, vocabulary)
    wish = TextRequest("a", (HI,), chat=True)
    assert thinking_of(wish, names, vocabulary) is None
    with pytest.raises(RequestError, match="thinking budget"):
        thinking_of(replace(wish, thinking_budget=5), names, vocabulary)


THOUGHT = "<|channel|>analysis<|message|>hm < 3\n<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>Yes."
SPOKEN: list[tuple[str, list[Event]]] = [
    (THOUGHT + FINAL, [ReasoningEvent("hm < 3\n"), TextEvent("Yes.")]),
    (THOUGHT + FINAL + "<|return|>", [ReasoningEvent("hm < 3\n"), TextEvent("Yes.")]),
    (THOUGHT + '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>',
     [ReasoningEvent("hm < 3\n"), ToolCallEvent("f", '{"x": 1}')]),
    (' to=functions.f<|channel|>commentary json<|message|>{"x": "<|"}', [ToolCallEvent("f", '{"x": "<|"}')]),
    ("<|channel|>commentary<|message|>First f.<|end|><|start|>assistant to=functions.a.b<|channel|>commentary "
     "<|constrain|>json<|message|>{}<|call|>", [TextEvent("First f."), ToolCallEvent("a.b", "{}")]),
    ("<|channel|>commentary to=functions.f<|message|>no JSON<|call|>",
     [TextEvent("<|channel|>commentary to=functions.f<|message|>no JSON")]),
    ("<|channel|>analysis to=browser.search<|message|>{}<|call|>", [ReasoningEvent("{}")]),
    ("<|channel|>analysis<|message|>cut", [ReasoningEvent("cut")]),
    ("<|channel|>fin", []),
    ("tomorrow, as a continued answer", [TextEvent("tomorrow, as a continued answer")]),
    (" to", [TextEvent(" to")]),
]  # fmt: skip


def read(pieces: list[str]) -> list[Event]:
    parser = channels.ReasoningParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return joined(events + parser.finish())


@pytest.mark.parametrize(("text", "expected"), SPOKEN)
def test_channels_are_told_apart(text: str, expected: list[Event]) -> None:
    assert read([text]) == expected == read(list(text))
    for place in range(1, len(text)):
        assert read([text[:place], text[place:]]) == expected


@settings(max_examples=150, deadline=None)
@given(words=st.lists(st.sampled_from([*channels.TAGS, "analysis", " to=functions.f", "{}", "a", "<|", " ", "二"])))
def test_any_text_any_cut(words: list[str]) -> None:
    text = "".join(words)
    assert read(words) == read([text]) == read(list(text))


def test_thinking_is_what_stands_in_analysis() -> None:
    parser, seen = channels.ReasoningParser(), []
    for piece in ("<|channel|>analysis<|message|>", "hm", "<|end|>", FINAL):
        parser.feed(piece)
        seen.append(parser.thinking)
    assert seen == [True, True, False, False]
