"""APIClient against a live server of ours on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.http_server import Live, running

from tokenmill import APIClient, client
from tokenmill.api.client import get_model_list
from tokenmill.errors import RequestError


@pytest.fixture
def served() -> Iterator[Live]:
    with running() as server:
        yield server


def test_models_chat_and_completions(served: Live) -> None:
    with client(served.url + "/v1") as api:
        assert isinstance(api, APIClient) and api.available_models == ["fake"]
        assert get_model_list(served.url + "/v1/models") == ["fake"]
        [whole] = api.chat_completions_v1("fake", [{"role": "user", "content": "one two"}])
        assert whole["choices"][0]["message"]["content"] == "echo one two"
        pieces = list(api.chat_completions_v1("fake", [{"role": "user", "content": "one two"}], stream=True))
        text = "".join(p["choices"][0]["delta"].get("content") or "" for p in pieces if p["choices"])
        assert text == "echo one two" and pieces[-1]["choices"][0]["finish_reason"] == "stop"
        [done] = api.completions_v1("fake", "one two three", max_tokens=2)
        assert done["choices"][0]["text"] == "echo one"


def test_refusals(served: Live) -> None:
    with client(served.url) as api:
        with pytest.raises(RequestError) as caught:
            list(api.chat_completions_v1("other", "x"))
        assert caught.value.status == 404
        with pytest.raises(RequestError) as caught:
            list(api.completions_v1("fake", "x", stream=True, temperature=9.0))
        assert caught.value.status == 400 and "temperature" in str(caught.value)


def test_nobody_there() -> None:
    with client("127.0.0.1:9") as api, pytest.raises(RequestError, match="is the server running"):
        _ = api.available_models


def test_sessions(served: Live) -> None:
    with client(served.url) as api:
        [first] = api.chat_interactive_v1("one two", session_id=3, interactive_mode=True)
        assert (first["text"], first["tokens"], first["history_tokens"]) == ("echo one two", 3, 0)
        pieces = list(api.chat("three", 3, stream=True))
        assert "".join(text for text, _, _ in pieces) == "echo one two echo one two three"
        assert [tokens for _, tokens, _ in pieces] == sorted(tokens for _, tokens, _ in pieces)
        assert pieces[-1][2] == "stop"
        api.end_session(3)
        [again] = api.chat_interactive_v1("four", session_id=3)
        assert (again["text"], again["history_tokens"]) == ("echo four", 0)
        with pytest.raises(RequestError, match="images"):
            next(api.chat_interactive_v1("x", image_url="http://x/y.png"))
