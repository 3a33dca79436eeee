"""Tool calls of chat completions."""

from __future__ import annotations

from typing import Any

from tokenmill.eval.conform.probe import HELLO, Probe, expect, parsed

GROUP = "tools"
PARAMETERS = {
    "type": "object", "additionalProperties": False, "required": ["city", "unit"],
    "properties": {"city": {"type": "string", "enum": ["Paris", "Tokyo"]}, "unit": {"type": "string", "enum": ["C"]}},
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"the {name}", "parameters": PARAMETERS}}
    for name in ("weather", "time")
]
NAMED = {"type": "function", "function": {"name": "time"}}
FIELDS: dict[str, Any] = {"tools": TOOLS, "max_tokens": 160, "parallel_tool_calls": False}


def arguments_meet(text: str) -> None:
    value = parsed(text)
    fine = isinstance(value, dict) and value.get("city") in ("Paris", "Tokyo") and value.get("unit") == "C"
    expect(fine and len(value) == 2, f"the arguments do not meet the schema: {text[:120]!r}")


def _calls(body: Any) -> list[Any]:
    choice = body["choices"][0]
    calls = choice["message"].get("tool_calls")
    expect(bool(calls), f"no tool call; the text is {str(choice['message'].get('content'))[:80]!r}")
    for call in calls:
        expect(call["type"] == "function" and bool(call["id"]), "a call has no id or type")
        arguments_meet(call["function"]["arguments"])
    return list(calls)


def required(probe: Probe) -> None:
    """tool_choice required: the answer is a call whose arguments meet the schema"""
    for seed in range(3):
        body = probe.chat(**FIELDS, tool_choice="required", temperature=1.2, seed=seed)
        expect(_calls(body)[0]["function"]["name"] in ("weather", "time"), "a tool that was not given")
        expect(body["choices"][0]["finish_reason"] in ("tool_calls", "stop"), "odd finish_reason")


def named(probe: Probe) -> None:
    """tool_choice with a name: that tool is called"""
    names = [call["function"]["name"] for call in _calls(probe.chat(**FIELDS, tool_choice=NAMED))]
    expect(set(names) == {"time"}, f"{names} are called, not time")


def one(probe: Probe) -> None:
    """parallel_tool_calls false: one call"""
    calls = _calls(probe.chat(**FIELDS, tool_choice="required"))
    expect(len(calls) == 1, f"{len(calls)} calls")


def none(probe: Probe) -> None:
    """tool_choice none: no call"""
    message = probe.chat(**{**FIELDS, "max_tokens": 12}, tool_choice="none")["choices"][0]["message"]
    expect(not message.get("tool_calls"), "there is a call")


def auto(probe: Probe) -> None:
    """tool_choice auto: text or calls, and a finish_reason that fits"""
    choice = probe.chat(**{**FIELDS, "max_tokens": 24})["choices"][0]
    called = bool(choice["message"].get("tool_calls"))
    expect(called or isinstance(choice["message"]["content"], str), "neither text nor calls")
    expect(called or choice["finish_reason"] != "tool_calls", "finish_reason tool_calls without a call")


def streamed(probe: Probe) -> None:
    """a streamed call has its id and name once, and pieces of arguments that join to JSON"""
    names: list[str] = []
    text, reason = "", None
    for chunk in probe.chunks("/v1/chat/completions", messages=HELLO, **FIELDS, tool_choice=NAMED):
        for choice in chunk["choices"]:
            reason = choice.get("finish_reason") or reason
            for call in choice["delta"].get("tool_calls") or ():
                expect(call["index"] == 0, "the call's index is not 0")
                names += [call["function"]["name"]] if call["function"].get("name") else []
                text += call["function"].get("arguments") or ""
    expect(names == ["time"], f"the names are {names}")
    arguments_meet(text)
    expect(reason in ("tool_calls", "stop"), f"finish_reason is {reason!r}")


def results(probe: Probe) -> None:
    """a conversation with a call and its result goes on"""
    function = {"name": "time", "arguments": '{"city":"Paris","unit":"C"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    turns = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "call_1", "content": "noon"}]  # fmt: skip
    body = probe.chat(messages=turns, **{**FIELDS, "max_tokens": 12})
    expect(body["usage"]["completion_tokens"] > 0, "no answer")


def wrong(probe: Probe) -> None:
    """a tool_choice that names no tool, and a tool without a name, are 400"""
    bad = {"type": "function", "function": {"name": "no-such-tool"}}
    body = {"model": probe.model, "messages": HELLO, "tools": TOOLS, "tool_choice": bad}
    probe.post("/v1/chat/completions", body, 400)
    probe.post("/v1/chat/completions", {**body, "tools": [{"type": "function"}], "tool_choice": "auto"}, 400)


CHECKS = (required, named, one, none, auto, streamed, results, wrong)
