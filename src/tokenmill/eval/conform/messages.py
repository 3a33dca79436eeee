"""Anthropic's messages."""

from __future__ import annotations

import json

from tokenmill.eval.conform.probe import ANTHROPIC, HELLO, Probe, expect, parsed
from tokenmill.eval.conform.tools import PARAMETERS, arguments_meet

GROUP = "messages"
PATH = "/v1/messages"
TOOLS = [{"name": name, "description": name, "input_schema": PARAMETERS} for name in ("weather", "time")]


def shape(probe: Probe) -> None:
    """a message has id, role, content blocks, stop_reason and usage"""
    body = probe.messages()
    expect(body["type"] == "message" and body["role"] == "assistant", "odd type or role")
    expect(all(block["type"] in ("text", "thinking") for block in body["content"]), "odd blocks")
    expect(body["stop_reason"] in ("end_turn", "max_tokens"), f"stop_reason is {body['stop_reason']!r}")
    expect(body["usage"]["input_tokens"] > 0 and body["usage"]["output_tokens"] <= 12, f"odd usage {body['usage']}")


def counting(probe: Probe) -> None:
    """count_tokens is what usage.input_tokens will be"""
    body = {"model": probe.model, "messages": HELLO, "system": "Be kind."}
    count = probe.post(f"{PATH}/count_tokens", body, headers=ANTHROPIC)["input_tokens"]
    used = probe.messages(system="Be kind.")["usage"]["input_tokens"]
    expect(count == used, f"count_tokens says {count}, usage {used}")


def streamed(probe: Probe) -> None:
    """events come as message_start, blocks, message_delta, message_stop"""
    got = [parsed(text) for text in probe.stream(PATH, messages=HELLO, max_tokens=12)]
    kinds = [event["type"] for event in got if event["type"] != "ping"]
    expect(kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"], f"{kinds}")
    starts, stops = kinds.count("content_block_start"), kinds.count("content_block_stop")
    expect(starts == stops, f"{starts} blocks start, {stops} stop")
    expect(got[-2]["usage"]["output_tokens"] > 0 if got[-2]["type"] == "message_delta" else True, "no usage at the end")


def tools(probe: Probe) -> None:
    """tool_choice any and tool: a tool_use block whose input meets the schema"""
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "time"}):
        body = probe.messages(tools=TOOLS, tool_choice=choice, max_tokens=160)
        blocks = [block for block in body["content"] if block["type"] == "tool_use"]
        expect(bool(blocks), "no tool_use block")
        expect(choice["type"] == "any" or blocks[0]["name"] == "time", f"{blocks[0]['name']} is called, not time")
        arguments_meet(json.dumps(blocks[0]["input"]))


def refusals(probe: Probe) -> None:
    """errors have Anthropic's shape: type error, and error.type, error.message"""
    reply = probe.client.post(PATH, json={"model": probe.model, "messages": HELLO}, headers=ANTHROPIC)
    expect(reply.status_code == 400, f"a request without max_tokens is answered {reply.status_code}")
    body = parsed(reply.text)
    expect(body["type"] == "error" and bool(body["error"]["type"]) and bool(body["error"]["message"]), "another shape")


CHECKS = (shape, counting, streamed, tools, refusals)
