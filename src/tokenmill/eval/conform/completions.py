"""Completions, whole, and embeddings."""

from __future__ import annotations

import base64
import math
import struct

from tokenmill.eval.conform.probe import Probe, expect

GROUP = "completions"


def shape(probe: Probe) -> None:
    """an answer has id, object text_completion, choices with text, usage"""
    body = probe.complete("Once upon a time")
    expect(body["object"] == "text_completion", f"object is {body['object']!r}")
    expect(isinstance(body["choices"][0]["text"], str) and body["usage"]["completion_tokens"] <= 6, "odd choice")


def batches(probe: Probe) -> None:
    """a list of prompts gives a choice each, in order, equal to each alone"""
    prompts = ["One two three", "Once upon a time"]
    body = probe.complete(prompts, temperature=0)
    expect([choice["index"] for choice in body["choices"]] == [0, 1], "indices are not 0 and 1")
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        alone = probe.complete(prompt, temperature=0)["choices"][0]["text"]
        expect(choice["text"] == alone, "together and alone differ at temperature 0")


def ids(probe: Probe) -> None:
    """token ids are taken as a prompt, and lists of them"""
    expect(probe.complete([5, 6, 7])["usage"]["prompt_tokens"] == 3, "3 ids are not 3 prompt tokens")
    expect(len(probe.complete([[5, 6], [7]])["choices"]) == 2, "2 lists of ids are not 2 prompts")


def echo(probe: Probe) -> None:
    """echo gives the prompt back before the answer"""
    text = probe.complete("Once upon a time", echo=True)["choices"][0]["text"]
    expect(text.strip().startswith("Once upon a time"), f"the text begins with {text[:40]!r}")


def embeddings(probe: Probe) -> None:
    """/v1/embeddings gives numbers, the same ones in base64"""
    body = {"model": probe.model, "input": ["hello", "world"]}
    plain = [item["embedding"] for item in probe.post("/v1/embeddings", body)["data"]]
    coded = [item["embedding"] for item in probe.post("/v1/embeddings", {**body, "encoding_format": "base64"})["data"]]
    for numbers, text in zip(plain, coded, strict=True):
        raw = base64.b64decode(text)
        same = struct.unpack(f"<{len(raw) // 4}f", raw)
        near = all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(numbers, same, strict=True))
        expect(near, "base64 has other numbers")


CHECKS = (shape, batches, ids, echo, embeddings)
