"""Raw server-sent events."""

from __future__ import annotations

from typing import Any

from tokenmill.eval.conform.probe import HELLO, SEED, Probe, expect

GROUP = "streams"
CHAT = "/v1/chat/completions"


def _chat(probe: Probe, **fields: Any) -> list[Any]:
    return probe.chunks(CHAT, messages=HELLO, **{"max_tokens": 12, "temperature": 0, **fields})


def _text(chunks: list[Any]) -> str:
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def joined(probe: Probe) -> None:
    """the pieces of a chat stream are the text of the whole answer"""
    whole = probe.chat(temperature=0)["choices"][0]["message"]["content"]
    expect(_text(_chat(probe)) == whole, "the stream's text is another one")


def frames(probe: Probe) -> None:
    """every chunk has one id, object chat.completion.chunk, and one finish_reason comes, at the end"""
    chunks = _chat(probe)
    expect(len({chunk["id"] for chunk in chunks}) == 1, "ids differ between chunks")
    expect({chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}, "object is another one")
    reasons = [chunk["choices"][0].get("finish_reason") for chunk in chunks if chunk["choices"]]
    expect(reasons[-1] in ("stop", "length"), f"the last finish_reason is {reasons[-1]!r}")
    expect(not any(reasons[:-1]), "a finish_reason comes before the end")


def usage(probe: Probe) -> None:
    """stream_options.include_usage adds one chunk without choices; without it no usage comes"""
    chunks = _chat(probe, stream_options={"include_usage": True})
    last = chunks[-1]
    expect(last["choices"] == [] and last["usage"]["completion_tokens"] > 0, "the last chunk has no usage")
    expect(not any(chunk.get("usage") for chunk in chunks[:-1]), "usage stands in an earlier chunk")
    expect(not any(chunk.get("usage") for chunk in _chat(probe)), "usage comes without being asked for")


def several(probe: Probe) -> None:
    """n choices of a stream carry their indices and end each for itself"""
    chunks = _chat(probe, n=2, temperature=1, seed=SEED)
    ended = [c["index"] for chunk in chunks for c in chunk["choices"] if c.get("finish_reason")]
    expect(sorted(ended) == [0, 1], f"choices {ended} have ended, not 0 and 1")


def completions(probe: Probe) -> None:
    """the pieces of a completion stream are the text of the whole answer"""
    whole = probe.complete("Once upon a time", temperature=0)["choices"][0]["text"]
    chunks = probe.chunks("/v1/completions", prompt="Once upon a time", max_tokens=6, temperature=0)
    said = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    expect(said == whole, "the stream's text is another one")


CHECKS = (joined, frames, usage, several, completions)
