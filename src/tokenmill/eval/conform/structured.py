"""Answers in a given form: what was asked for holds, whatever the model would rather say."""

from __future__ import annotations

from typing import Any

from tokenmill.eval.conform.probe import HELLO, Probe, expect, parsed

GROUP = "structured"
# Bounded, so that any model ends it within 120 tokens.
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["kind", "legs", "wild"],
    "properties": {"kind": {"enum": ["fox", "hen"]}, "legs": {"enum": [2, 4]}, "wild": {"type": "boolean"}},
}  # fmt: skip
FORM = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}


def meets(text: str) -> None:
    value = parsed(text)
    expect(isinstance(value, dict) and sorted(value) == ["kind", "legs", "wild"], f"keys differ: {text[:120]!r}")
    fine = value["kind"] in ("fox", "hen") and value["legs"] in (2, 4) and isinstance(value["wild"], bool)
    expect(fine, f"values differ: {text[:120]!r}")


def schema(probe: Probe) -> None:
    """response_format json_schema: every answer meets the schema, at any temperature"""
    for seed in range(3):
        body = probe.chat(response_format=FORM, max_tokens=120, temperature=1.5, seed=seed)
        meets(body["choices"][0]["message"]["content"])


def streamed(probe: Probe) -> None:
    """so does a streamed one, and each of n"""
    fields: dict[str, Any] = {"messages": HELLO, "response_format": FORM, "max_tokens": 120, "n": 2}
    texts = ["", ""]
    for chunk in probe.chunks("/v1/chat/completions", **fields):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    for text in texts:
        meets(text)


def any_object(probe: Probe) -> None:
    """response_format json_object: the answer is a JSON object, if it was not cut"""
    choice = probe.chat(response_format={"type": "json_object"}, max_tokens=60)["choices"][0]
    text = choice["message"]["content"]
    expect(text.lstrip().startswith("{"), f"the text begins with {text[:20]!r}")
    if choice["finish_reason"] != "length":
        expect(isinstance(parsed(text), dict), "it is no object")


def wrong(probe: Probe) -> None:
    """a schema that is none is 400"""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no-such-type"}}}
    probe.post("/v1/chat/completions", {"model": probe.model, "messages": HELLO, "response_format": form}, 400)


CHECKS = (schema, streamed, any_object, wrong)
