"""What is wrong is refused, with a status and a body that clients can read."""

from __future__ import annotations

from typing import Any

from tokenmill.eval.conform.probe import HELLO, Probe, expect, parsed

GROUP = "errors"
CHAT = "/v1/chat/completions"


def _refused(probe: Probe, status: tuple[int, ...], **fields: Any) -> dict[str, Any]:
    """The error object of a refusal."""
    reply = probe.client.post(CHAT, json={"model": probe.model, "messages": HELLO, "max_tokens": 4, **fields})
    shown = ", ".join(f"{name} {str(value)[:20]}" for name, value in fields.items())
    expect(reply.status_code in status, f"{shown} is answered {reply.status_code}, not {status[0]}")
    error = parsed(reply.text).get("error")
    expect(isinstance(error, dict) and isinstance(error.get("message"), str), "the body has no error.message")
    expect("type" in error, "the error has no type")
    return dict(error)


def model(probe: Probe) -> None:
    """an unknown model is 404"""
    _refused(probe, (404,), model="no-such-model")


def values(probe: Probe) -> None:
    """numbers out of range and wrong types are 400"""
    wrong: list[dict[str, Any]] = [
        {"temperature": 9}, {"temperature": "hot"}, {"top_p": 7}, {"max_tokens": -1}, {"n": 0}, {"stop": [""] * 99},
        {"messages": []}, {"messages": [{"role": "nobody", "content": "x"}]},
    ]  # fmt: skip
    for fields in wrong:
        _refused(probe, (400, 422), **fields)


def bodies(probe: Probe) -> None:
    """what is no JSON object is 400, never 500"""
    for raw in (b"", b"{", b"[]", b"null", b'{"model": NaN}', b"\xff\xfe"):
        reply = probe.client.post(CHAT, content=raw, headers={"content-type": "application/json"})
        expect(reply.status_code in (400, 422), f"{raw!r} is answered {reply.status_code}")


def context(probe: Probe) -> None:
    """a prompt longer than the context is 400 and says so"""
    error = _refused(probe, (400,), messages=[{"role": "user", "content": "word " * 400_000}])
    expect("context" in error["message"].lower(), f"the message is {error['message'][:120]!r}")


def paths(probe: Probe) -> None:
    """an unknown path is 404, a wrong method 405"""
    status = probe.client.get("/v1/no/such/path").status_code
    expect(status == 404, f"an unknown path is answered {status}")
    status = probe.client.get(CHAT).status_code
    expect(status == 405, f"GET is answered {status}")


CHECKS = (model, values, bodies, context, paths)
