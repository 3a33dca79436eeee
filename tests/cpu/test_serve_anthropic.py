"""The Anthropic endpoints, by raw HTTP and by the official SDK, on a real session over a scripted engine."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest
from tests.support.echo import EchoModel, echo_text_engine
from tests.support.http_server import serving

from tokenmill.serve.anthropic.answer import Blocks
from tokenmill.types import Chunk, ToolCallDelta

VERSION = {"anthropic-version": "2023-06-01"}
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"name": "add", "description": "adds", "input_schema": {"type": "object", "properties": {"a": {}, "b": {}}}}
CALL = '<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 1, "b": "二"}}<|action_end|>'


@pytest.fixture(scope="module")
def sdk(client: httpx.Client) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=str(client.base_url), api_key="none", max_retries=0)


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"model": "echo", "max_tokens": 64, "messages": HELLO} | fields
    return client.post("/v1/messages", json=body, headers=VERSION)


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append((value["type"], value))
    return found


def test_a_message_in_whole(client: httpx.Client) -> None:
    body = ask(client).json()
    assert body["id"].startswith("msg_")
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "echo")
    assert body["content"] == [{"type": "text", "text": "hello"}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["output_tokens"] == len("hello") + 1


def test_length_and_stop_sequence_are_told_apart(client: httpx.Client) -> None:
    assert ask(client, max_tokens=2).json()["stop_reason"] == "max_tokens"
    body = ask(client, stop_sequences=["x", "ll"]).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "ll")
    assert body["content"][0]["text"] == "he"


def test_stream_in_the_order_of_the_documentation(client: httpx.Client) -> None:
    parts = events(ask(client, stream=True).text)
    names = [name for name, _ in parts if name not in ("content_block_delta", "ping")]
    assert names == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    text = "".join(value["delta"]["text"] for name, value in parts if name == "content_block_delta")
    assert text == "hello"
    start, delta = parts[0][1]["message"], parts[-2][1]
    assert start["content"] == [] and start["usage"]["input_tokens"] > 0 and start["stop_reason"] is None
    assert delta["delta"]["stop_reason"] == "end_turn" and delta["usage"]["output_tokens"] == 6


def test_system_blocks_history_and_prefill_reach_the_template(client: httpx.Client, model: EchoModel) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "begun"},
    ]
    assert ask(client, messages=messages, system=[{"type": "text", "text": "be brief"}]).status_code == 200
    text = model._parts.codec.tokenizer.decode(model.fake.seen[-1].prompt_ids, skip_special_tokens=False)
    assert text.count("<s>") == 1
    assert text.removeprefix("<s>") == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\nbegun"
    )


def test_count_is_what_usage_says(client: httpx.Client) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "he"}]
    for fields in ({}, {"system": "be brief"}, {"tools": [TOOL]}, {"messages": begun}):
        body = {"model": "echo", "messages": HELLO} | fields
        counted = client.post("/v1/messages/count_tokens", json=body, headers=VERSION).json()["input_tokens"]
        assert counted == ask(client, **fields).json()["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"model": "other"}, 404, "not_found_error"), ({"max_tokens": 0}, 400, "invalid_request_error"),
        ({"max_tokens": None}, 400, "invalid_request_error"), ({"messages": []}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]}, 400,
         "invalid_request_error"),
        ({"temperature": 2.5}, 400, "invalid_request_error"), ({"top_p": 0}, 400, "invalid_request_error"),
        ({"tools": [{"name": "f"}]}, 400, "invalid_request_error"), ({"stop_sequences": [""]}, 400,
                                                                     "invalid_request_error"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "invalid_request_error"),
    ],
)  # fmt: skip
def test_errors_have_anthropics_shape(client: httpx.Client, fields: dict[str, Any], status: int, kind: str) -> None:
    reply = ask(client, **fields)
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert body["type"] == "error" and set(body) == {"type", "error"} and body["error"]["type"] == kind
    assert int(reply.headers["content-length"]) == len(reply.content)


def test_version_header_content_type_and_json(client: httpx.Client) -> None:
    body = {"model": "echo", "max_tokens": 4, "messages": HELLO}
    assert "anthropic-version" in client.post("/v1/messages", json=body).json()["error"]["message"]
    for content, headers in ((b"{", {"content-type": "application/json"}), (b"{}", {"content-type": "text/plain"})):
        reply = client.post("/v1/messages", content=content, headers=VERSION | headers)
        assert reply.status_code == 400 and reply.json()["type"] == "error"


def test_keys_by_either_header_and_a_401_in_shape() -> None:
    with serving(echo_text_engine(), api_keys=("secret",)) as (_, http):
        body = {"model": "echo", "max_tokens": 4, "messages": HELLO}
        refused = http.post("/v1/messages", json=body, headers=VERSION)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        for header in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
            assert http.post("/v1/messages", json=body, headers=VERSION | header).status_code == 200


def test_models(client: httpx.Client) -> None:
    body = client.get("/anthropic/v1/models").json()
    assert body["data"][0]["id"] == body["first_id"] == body["last_id"] == "echo" and body["has_more"] is False


# ---------------------------------------------------------------- the official client


def test_sdk_create_stream_and_count(sdk: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "echo", "max_tokens": 64, "messages": HELLO}
    message = sdk.messages.create(**asked)
    assert message.content[0].type == "text" and message.content[0].text == "hello"
    with sdk.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == "hello"
        last = stream.get_final_message()
    assert last.content[0].text == "hello" and last.usage.output_tokens == message.usage.output_tokens
    count = sdk.messages.count_tokens(model="echo", messages=HELLO)  # type: ignore[arg-type]
    assert count.input_tokens == message.usage.input_tokens


def test_sdk_sees_typed_errors(sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.create(model="other", max_tokens=4, messages=HELLO)  # type: ignore[arg-type]
    with pytest.raises(anthropic.BadRequestError):
        sdk.messages.create(model="echo", max_tokens=4, messages=HELLO, stop_sequences=[""])  # type: ignore[arg-type]


def test_sdk_tools_whole_and_streamed_and_their_results() -> None:
    model = echo_text_engine(script="let me see" + CALL)
    with serving(model) as (_, http):
        sdk = anthropic.Anthropic(base_url=str(http.base_url), api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": "echo", "max_tokens": 256, "messages": HELLO, "tools": [TOOL]}
        message = sdk.messages.create(**asked)
        with sdk.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        for one in (message, streamed):
            assert one.stop_reason == "tool_use"
            text, call = one.content
            assert text.type == "text" and text.text == "let me see"
            assert call.type == "tool_use" and call.name == "add" and call.input == {"a": 1, "b": "二"} and call.id
        back = [*HELLO, {"role": "assistant", "content": [block.model_dump() for block in message.content]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": message.content[1].id,
                                              "content": [{"type": "text", "text": "three"}]}]}]  # fmt: skip
        assert sdk.messages.create(**asked | {"messages": back}).stop_reason == "tool_use"
        prompt = model._parts.codec.tokenizer.decode(model.fake.seen[-1].prompt_ids, skip_special_tokens=False)
        assert "three" in prompt and '"name": "add"' in prompt


def test_thinking_text_and_two_calls_are_four_blocks() -> None:
    blocks = Blocks()
    chunks = [
        Chunk(reasoning="hm"), Chunk(reasoning="m", text="a"), Chunk(text="b"),
        Chunk(tool_calls=(ToolCallDelta(0, "c0", "f", "{}"), ToolCallDelta(1, "c1", "g", '{"a"'))),
        Chunk(tool_calls=(ToolCallDelta(1, arguments=":1}"),)),
    ]
    told = [event for chunk in chunks for event in blocks.feed(chunk)] + list(blocks.close())
    assert [(e["index"], e["content_block"]["type"]) for e in told if e["type"] == "content_block_start"] == [
        (0, "thinking"), (1, "text"), (2, "tool_use"), (3, "tool_use")
    ]
    assert [e["index"] for e in told if e["type"] == "content_block_stop"] == [0, 1, 2, 3]
    deltas = [(e["index"], e["delta"]) for e in told if e["type"] == "content_block_delta"]
    assert "".join(d["thinking"] for i, d in deltas if d["type"] == "thinking_delta") == "hmm"
    assert [d["type"] for i, d in deltas if i == 0][-1] == "signature_delta"
    assert "".join(d["text"] for i, d in deltas if i == 1) == "ab"
    assert "".join(d["partial_json"] for i, d in deltas if i == 3) == '{"a":1}'
