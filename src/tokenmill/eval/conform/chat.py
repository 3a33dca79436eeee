"""Chat completions, whole."""

from __future__ import annotations

from typing import Any

from tokenmill.eval.conform.probe import HELLO, Probe, expect

GROUP = "chat"
FINISH = ("stop", "length")


def shape(probe: Probe) -> None:
    """an answer has id, object, created, model, choices, usage"""
    body = probe.chat()
    expect(body["object"] == "chat.completion", f"object is {body['object']!r}")
    expect(isinstance(body["id"], str) and isinstance(body["created"], int), "id or created is odd")
    expect(body["model"] == probe.model, f"model is {body['model']!r}")
    [choice] = body["choices"]
    message = choice["message"]
    expect(choice["index"] == 0 and choice["finish_reason"] in FINISH, f"odd finish_reason {choice['finish_reason']!r}")
    expect(message["role"] == "assistant" and isinstance(message["content"], str), "the message has no text")


def usage(probe: Probe) -> None:
    """usage counts prompt and answer, and total is their sum"""
    counts = probe.chat(max_tokens=5)["usage"]
    expect(counts["prompt_tokens"] > 0 and 0 < counts["completion_tokens"] <= 5, f"odd counts {counts}")
    expect(counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"], f"not the sum: {counts}")


def length(probe: Probe) -> None:
    """max_tokens and max_completion_tokens end an answer with finish_reason length"""
    for name in ("max_tokens", "max_completion_tokens"):
        body = probe.post("/v1/chat/completions", {"model": probe.model, "messages": HELLO, name: 1})
        expect(body["usage"]["completion_tokens"] == 1, f"{name} 1 gives {body['usage']['completion_tokens']} tokens")


def choices(probe: Probe) -> None:
    """n gives n choices with their indices, the prompt counted once"""
    one, two = probe.chat()["usage"], probe.chat(n=2)
    expect([choice["index"] for choice in two["choices"]] == [0, 1], "n 2 does not give choices 0 and 1")
    expect(two["usage"]["prompt_tokens"] == one["prompt_tokens"], "the prompt is counted more than once")


def greedy(probe: Probe) -> None:
    """temperature 0 gives the same answer again; so does a seed"""
    for fields in ({"temperature": 0}, {"temperature": 1, "seed": 7}):
        texts = {_text(probe.chat(**fields)) for _ in range(2)}
        expect(len(texts) == 1, f"{fields} gives different answers")


def stops(probe: Probe) -> None:
    """a stop string ends the answer and is not part of it"""
    whole = _text(probe.chat(temperature=0, max_tokens=24))
    if len(whole) < 4:
        return
    word = whole[len(whole) // 2 :][:3]
    cut = probe.chat(temperature=0, max_tokens=24, stop=[word])
    expect(_text(cut) == whole[: whole.index(word)], "the text does not end where the stop string begins")
    expect(cut["choices"][0]["finish_reason"] == "stop", "finish_reason is not stop")


def logprobs(probe: Probe) -> None:
    """logprobs have token, bytes, logprob and the asked number of alternatives"""
    content = probe.chat(logprobs=True, top_logprobs=3, max_tokens=4)["choices"][0]["logprobs"]["content"]
    expect(0 < len(content) <= 4, f"{len(content)} entries for at most 4 tokens")
    for entry in content:
        expect(entry["logprob"] <= 0 and isinstance(entry["token"], str), f"odd entry {entry}"[:160])
        expect(len(entry["top_logprobs"]) == 3, f"{len(entry['top_logprobs'])} alternatives, not 3")
        expect(entry["bytes"] is None or bytes(entry["bytes"]) is not None, "bytes are none")


def contents(probe: Probe) -> None:
    """content may be a list of text parts; system, assistant and developer messages are taken"""
    parts = [{"type": "text", "text": "Say hello."}]
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": parts},
        {"role": "assistant", "content": "hello"}, {"role": "user", "content": "Again."},
    ]  # fmt: skip
    expect(isinstance(_text(probe.chat(messages=turns)), str), "no text")


def extras(probe: Probe) -> None:
    """fields that a server does not know do no harm"""
    probe.chat(store=False, metadata={"a": "b"}, service_tier="auto", user="me", no_such_field=[1])


def _text(body: Any) -> str:
    return str(body["choices"][0]["message"]["content"])


CHECKS = (shape, usage, length, choices, greedy, stops, logprobs, contents, extras)
