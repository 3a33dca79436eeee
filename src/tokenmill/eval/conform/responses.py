"""The responses API."""

from __future__ import annotations

from typing import Any

from tokenmill.eval.conform.probe import Probe, expect, parsed
from tokenmill.eval.conform.structured import SCHEMA, meets
from tokenmill.eval.conform.tools import PARAMETERS, arguments_meet

GROUP = "responses"
PATH = "/v1/responses"
SHORT = {"max_output_tokens": 12, "temperature": 0}
TOOL = {"type": "function", "name": "time", "parameters": PARAMETERS}


def _ask(probe: Probe, **fields: Any) -> Any:
    return probe.post(PATH, {"model": probe.model, "input": "Say hello.", **SHORT, **fields})


def shape(probe: Probe) -> None:
    """a response has id, status, output items and usage"""
    body = _ask(probe)
    expect(body["object"] == "response" and body["status"] in ("completed", "incomplete"), "odd object or status")
    [message] = [item for item in body["output"] if item["type"] == "message"]
    expect(message["content"][0]["type"] == "output_text", "the message has no output_text")
    counts = body["usage"]
    expect(counts["total_tokens"] == counts["input_tokens"] + counts["output_tokens"], f"not the sum: {counts}")


def streamed(probe: Probe) -> None:
    """events come in order, numbered, and their deltas are the text at the end"""
    got = [parsed(text) for text in probe.stream(PATH, input="Say hello.", max_output_tokens=12) if text != "[DONE]"]
    kinds = [event["type"] for event in got]
    expect(kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), f"{kinds}")
    numbers = [event["sequence_number"] for event in got]
    expect(numbers == list(range(numbers[0], numbers[0] + len(numbers))), "sequence numbers have gaps")
    deltas = "".join(event["delta"] for event in got if event["type"] == "response.output_text.delta")
    done = [event["text"] for event in got if event["type"] == "response.output_text.done"]
    expect(done == [deltas], "the deltas are another text than the end's")


def calls(probe: Probe) -> None:
    """tool_choice required: a function_call item whose arguments meet the schema"""
    body = _ask(probe, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_output_tokens=160)
    [call] = [item for item in body["output"] if item["type"] == "function_call"]
    expect(call["name"] == "time" and bool(call["call_id"]), "the call has another name or no call_id")
    arguments_meet(call["arguments"])


def structured(probe: Probe) -> None:
    """text.format json_schema: the text meets the schema"""
    form = {"type": "json_schema", "name": "animal", "schema": SCHEMA, "strict": True}
    body = _ask(probe, text={"format": form}, max_output_tokens=120)
    [message] = [item for item in body["output"] if item["type"] == "message"]
    meets(message["content"][0]["text"])


CHECKS = (shape, streamed, calls, structured)
