"""The endpoint table of LMDeploy's HTTP surface, row by row: what every route says to a plain request.

What a route does is shown by the tests of its own file; here none is missing, and those that are not served say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.http_server import Live, running

from tokenmill.serve.native.later import ROUTES as LATER

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "fake", "messages": HELLO}
# (method, path, body, status): None as body is a request without one.
ROWS: list[tuple[str, str, Any, int]] = [
    ("GET", "/", None, 200), ("GET", "/docs", None, 200), ("GET", "/redoc", None, 200),
    ("GET", "/openapi.json", None, 200),
    ("GET", "/v1/models", None, 200), ("GET", "/v1/models/fake", None, 200),
    ("POST", "/v1/chat/completions", CHAT, 200), ("POST", "/v1/chat/completions", {**CHAT, "messages": "hello"}, 200),
    ("POST", "/v1/completions", {"model": "fake", "prompt": "hello"}, 200),
    ("POST", "/v1/chat/interactive", {"prompt": "hello"}, 200),
    ("POST", "/generate", {"prompt": "hello"}, 200), ("POST", "/generate", {"input_ids": [1, 2]}, 200),
    ("POST", "/generate", {"prompt": "hello", "request_output_len": 4, "interactive_mode": False}, 200),
    ("POST", "/v1/encode", {"input": ["hello", "you"]}, 200), ("POST", "/v1/embeddings", {"input": "hello"}, 200),
    ("POST", "/pooling", {"input": "hello"}, 200), ("POST", "/get_ppl", {"input": "hello you"}, 200),
    ("GET", "/health", None, 200), ("GET", "/metrics", None, 200),
    ("POST", "/v1/messages", {"model": "fake", "max_tokens": 4, "messages": HELLO}, 200),
    ("POST", "/v1/messages/count_tokens", {"model": "fake", "messages": HELLO}, 200),
    ("GET", "/anthropic/v1/models", None, 200), ("POST", "/v1/responses", {"model": "fake", "input": "hello"}, 200),
    ("POST", "/tokenize", {"prompt": "hello"}, 200), ("POST", "/detokenize", {"tokens": [1, 2]}, 200),
    ("GET", "/tokenizer_info", None, 200), ("POST", "/v1/rerank", {"query": "hello", "documents": ["a", "b"]}, 200),
    # Steering needs the admin socket, or its option and a key.
    ("POST", "/sleep", None, 404), ("POST", "/wakeup", None, 404), ("GET", "/is_sleeping", None, 404),
    ("POST", "/abort_request", {}, 404), ("GET", "/terminate", None, 404),
    *((method, path, {} if method == "POST" else None, 501) for method, path in LATER),
]  # fmt: skip


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with running() as server:
        yield server


@pytest.mark.parametrize(("method", "path", "body", "status"), ROWS, ids=lambda value: str(value)[:40])
def test_every_row(live: Live, method: str, path: str, body: Any, status: int) -> None:
    content = {} if body is None else {"json": body}
    reply = live.client.request(method, path, headers={"anthropic-version": "2023-06-01"}, **content)
    assert reply.status_code == status, reply.text
    if status == 501:
        error = reply.json()["error"]
        assert error["code"] == "not_implemented" and error["message"].startswith(f"{path} is not served: ")


def test_what_is_not_served_is_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "http.md").read_text("utf-8")
    missing = {path for _, path in LATER if f"`{path}`" not in text}
    assert not missing
