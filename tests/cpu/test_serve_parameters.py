"""Hardening of generation parameters: each bound from both sides, before anything is tokenized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.fake_text import FakeTextEngine
from tests.support.http_server import HELLO, Live, running

INT64 = (1 << 63) - 1
USER = [{"role": "user", "content": "hello world"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with running() as server:
        yield server


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def tool(parameters: Any = None, name: Any = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


# field -> (accepted, refused), on chat
CHAT_BOUNDS: dict[str, tuple[list[Any], list[Any]]] = {
    "n": ([1, 16, None], [0, -1, 17, 10**9, 1.5, "2", True, []]),
    "best_of": ([1, None], [0, 2, 100]),
    "max_tokens": ([1, 512, 10**9, INT64, None], [0, -1, 1.5, "5", True]),
    "max_completion_tokens": ([1, 10**12], [0, -5]),
    "min_tokens": ([0, 3], [-1, 513, INT64]),
    "min_new_tokens": ([0, 3], [-1, 513, INT64]),
    "temperature": ([0, 0.5, 2, 2.0, None], [-0.01, 2.01, 1e308, "1", True, [1]]),
    "top_p": ([0.01, 1, 1.0, None], [0, -0.1, 1.01, "test"]),
    "top_k": ([0, 1, 10**6, None], [-1, 0.5, "40"]),
    "min_p": ([0, 1], [-0.1, 1.1]),
    "presence_penalty": ([-2, 2], [-2.01, 2.01]),
    "frequency_penalty": ([-2, 2], [-2.01, 2.01]),
    "repetition_penalty": ([0.1, 1, 10], [0, -1, 10.1]),
    "seed": ([0, INT64, -INT64 - 1, None], [1.5, "1", True]),
    "logit_bias": ([{}, {"0": -100, "999": 100}, {str(i): 1 for i in range(300)}],
                   [{"1000": 1}, {"-1": 1}, {"a": 1}, {"1": 101}, {"1": -101}, {"٣": 1}, {"1e2": 1},
                    {str(i): 1 for i in range(301)}, [1], {"9" * 5000: 1}]),
    "stop": (["a", ["a"] * 16, None, False, [], "a" * 256], ["", [""], ["a"] * 17, "a" * 257, True, 5, [1], [None]]),
    "stop_token_ids": ([[], [0, 999], [1] * 128], [[-1], [1000], [1] * 129, ["1"], 5, [True]]),
    "messages": (["text", USER, [{"role": "assistant", "content": "a"}, *USER]],
                 ["", [], {}, 5, None, [{}], [{"role": "user"}], [{"role": "root", "content": "a"}], ["a"],
                  [{"role": "user", "content": []}], [{"role": "user", "content": 5}], [USER],
                  [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
                  [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}],
                  [{"role": "user", "content": "a", "name": "x" * 129}],
                  [{"role": "user", "content": "a"}] * 4097]),
    "tools": ([[], [TOOL], [TOOL] * 128, [tool(nested(32))], [tool({"a": "x" * 60_000})]],
              [[TOOL] * 129, [{}], [{"type": "code"}], [tool(nested(33))], [tool({"a": "x" * 66_000})], "f", [tool(5)],
               [tool(name="")], [tool(name=5)], [tool(name="x" * 257)]]),
    "chat_template_kwargs": ([{}, {"enable_thinking": True}, {"date_string": "today"}],
                             [{"tokenize": True}, {"return_dict": True}, {"chat_template": "{{1}}"}, {"tools": "x"},
                              {"enable_thinking": [1]}, {"enable_thinking": {"a": 1}}, {"__class__": 1}]),
    "return_routed_experts": ([False, None], [True, 1]),
    "repetition_ngram_size": ([0, None], [1, -1]),
    "repetition_ngram_threshold": ([0, 5], [-1]),
    "thinking_token_budget": ([0, 512, INT64, None], [-1, 1.5, "5", True]),
    "thinking_budget": ([0, 512, None], [-1, "5"]),
    "user": (["", "a" * 128, None], ["a" * 129, "é", "a\nb", "\x1b[31m", 5]),
    "cache_salt": (["", "a" * 128], ["a" * 129, "\x00"]),
    "session_id": ([-1, 0, INT64], [-2, "a", 1.5]),
    "stream": ([False, None], ["yes", 1]),
    "stream_options": ([{"include_usage": False}, None], [5, {"include_usage": "yes"}]),
    "model": (["fake"], ["", None, 5, "x" * 513]),
}  # fmt: skip
# top_logprobs is meaningless without logprobs, and completions count them in logprobs itself.
PAIRS = [
    ({"logprobs": True, "top_logprobs": 20}, 200), ({"logprobs": True, "top_logprobs": 21}, 400),
    ({"logprobs": True, "top_logprobs": -1}, 400), ({"top_logprobs": 1}, 400), ({"logprobs": 1}, 400),
    ({"min_tokens": 5, "max_tokens": 5}, 200), ({"min_tokens": 6, "max_tokens": 5}, 400),
    ({"n": 2, "session_id": 3}, 400), ({"best_of": 2, "n": 2}, 200),
    ({"chat_template": "{{ 1 }}"}, 403), ({"model": "other"}, 404), ({"model": "../../etc/passwd"}, 404),
    ({"response_format": {"type": "text"}}, 200),
]  # fmt: skip
ACCEPTED = [(field, value) for field, (good, _) in CHAT_BOUNDS.items() for value in good]
REFUSED = [(field, value) for field, (_, bad) in CHAT_BOUNDS.items() for value in bad]


def label(value: Any) -> str:
    return str(value)[:24]


@pytest.mark.parametrize(("field", "value"), ACCEPTED, ids=label)
def test_the_edge_is_accepted(live: Live, field: str, value: Any) -> None:
    reply = live.chat(**{field: value})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=label)
def test_beyond_the_edge_is_400_before_the_engine(live: Live, field: str, value: Any) -> None:
    seen = len(live.engine.seen)
    reply = live.chat(**{field: value})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"] and len(reply.text) < 1500
    assert len(live.engine.seen) == seen


@pytest.mark.parametrize(("fields", "status"), PAIRS, ids=label)
def test_fields_that_depend_on_each_other(live: Live, fields: dict[str, Any], status: int) -> None:
    assert live.chat(**fields).status_code == status


@pytest.mark.parametrize(
    "prompt",
    ["", [], [""], [[]], ["a", ""], [1, "a"], [1.5], [True], [-1], [1000], [[1], [1000]], 5, None, {}, [[1, [2]]],
     ["a"] * 65, [1] * 513, [2**40]],
    ids=label,
)  # fmt: skip
def test_prompts_that_are_none(live: Live, prompt: Any) -> None:
    seen = len(live.engine.seen)
    assert live.complete(prompt).status_code == 400
    assert len(live.engine.seen) == seen


@pytest.mark.parametrize("prompt", ["a", ["a"] * 64, [1] * 100, [0, 999], [[1], [2]]], ids=label)
def test_prompts_at_the_edge(live: Live, prompt: Any) -> None:
    assert live.complete(prompt, max_tokens=1).status_code == 200


@pytest.mark.parametrize(("logprobs", "status"), [(0, 200), (20, 200), (21, 400), (-1, 400), (True, 400)])
def test_completion_logprobs(live: Live, logprobs: Any, status: int) -> None:
    assert live.complete(logprobs=logprobs).status_code == status


def test_max_tokens_is_clamped_to_the_room(live: Live) -> None:
    body = live.chat(max_tokens=INT64, ignore_eos=True).json()
    assert body["usage"]["total_tokens"] == live.engine.max_model_tokens
    assert body["choices"][0]["finish_reason"] == "length"


def test_a_prompt_too_long_is_refused_with_both_numbers(live: Live) -> None:
    for reply in (live.chat(messages=[{"role": "user", "content": "word " * 600}]), live.complete("word " * 600)):
        error = reply.json()["error"]
        assert reply.status_code == 400 and error["code"] == "context_length_exceeded"
        assert "600" in error["message"] and "512" in error["message"] and "context length" in error["message"]


def test_max_n_is_an_option() -> None:
    with running(max_n=2) as live:
        assert live.chat(n=2).status_code == 200
        refused = live.chat(n=3)
        assert refused.status_code == 400 and "--max-n" in refused.json()["message"]


def test_prompt_embeddings_and_pickled_tensors_are_not_read(live: Live) -> None:
    reply = live.client.post("/v1/completions", json={"model": "fake", "prompt_embeds": "gASVAA==", "prompt": None})
    assert reply.status_code == 400
    # Beside a prompt the field is one of the unknown ones: ignored.
    assert live.complete(prompt_embeds="gASVAA==").status_code == 200


@pytest.mark.parametrize(("value", "status"), [("5", 200), ("0", 400), ("-1", 400), ("nan", 400),
                                               ("inf", 400), ("soon", 400), ("", 400)])  # fmt: skip
def test_a_clients_own_deadline(live: Live, value: str, status: int) -> None:
    reply = live.client.post("/v1/chat/completions", json=HELLO, headers={"X-Request-Timeout": value})
    assert reply.status_code == status, reply.text


def test_a_deadline_in_mid_stream_ends_the_answer_with_timeout() -> None:
    with running(FakeTextEngine(step_s=0.05), request_timeout_s=0.2) as live:
        text = live.chat(stream=True, ignore_eos=True).text
        assert '"finish_reason":"timeout"' in text and text.endswith("data: [DONE]\n\n")
        assert live.chat(ignore_eos=True).status_code == 504
        # A client cannot ask for more than the server gives.
        slow = live.client.post(
            "/v1/chat/completions", json=HELLO | {"ignore_eos": True}, headers={"X-Request-Timeout": "50"}
        )
        assert slow.status_code == 504


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OTHERS = {"prompt", "logprobs", "top_logprobs", "echo", "tool_choice", "response_format", "suffix"}
FIELDS = sorted({*CHAT_BOUNDS, *OTHERS})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_no_body_whatever_makes_a_500(live: Live, path: str) -> None:
    base = HELLO | {"prompt": "hello", "max_tokens": 4}

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=3))
    def check(fields: dict[str, Any]) -> None:
        try:
            reply = live.client.post(path, json=base | fields)
        except (UnicodeEncodeError, httpx.LocalProtocolError):
            return
        assert reply.status_code in (200, 400, 403, 404, 501), (fields, reply.text)

    check()
