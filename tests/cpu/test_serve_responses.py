"""POST /v1/responses, by raw HTTP and by the official SDK, on a real session over a scripted engine."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from tests.support.echo import EchoModel, echo_text_engine, prompt_of
from tests.support.http_server import serving

from tokenmill.serve.responses.events import Items
from tokenmill.types import Chunk, ToolCallDelta

CALL = '<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 1, "b": "二"}}<|action_end|>'
TOOL = {"type": "function", "name": "add", "description": "adds", "parameters": {"type": "object"}, "strict": False}


@pytest.fixture(scope="module")
def sdk(client: httpx.Client) -> openai.OpenAI:
    return sdk_of(client)


def sdk_of(client: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/responses", json={"model": "echo", "input": "hello"} | fields)


def test_a_response_in_whole(client: httpx.Client) -> None:
    body = ask(client, metadata={"k": "v"}, temperature=0.5).json()
    assert body["id"].startswith("resp_") and body["object"] == "response" and body["status"] == "completed"
    [item] = body["output"]
    assert item["type"] == "message" and item["content"][0]["text"] == "hello" == body["output_text"]
    assert body["store"] is False and body["metadata"] == {"k": "v"} and body["temperature"] == 0.5
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_cut_response_is_incomplete(client: httpx.Client) -> None:
    body = ask(client, max_output_tokens=2).json()
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}


def test_instructions_and_items_reach_the_template(client: httpx.Client, model: EchoModel) -> None:
    items = [
        {"role": "developer", "content": "be kind"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "user", "content": "c"},
    ]
    assert ask(client, input=items).status_code == 200
    assert prompt_of(model) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ask(client, instructions="be brief").status_code == 200
    assert prompt_of(model).startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"), ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{}]}, "context_management"), ({"input": []}, "input"), ({"input": None}, "input"),
        ({"input": ""}, "input"), ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
         "input"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input"), ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"max_output_tokens": 0}, "max_output_tokens"), ({"temperature": 3}, "temperature"),
    ],
)  # fmt: skip
def test_what_is_refused(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    reply = ask(client, **fields)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"].split(".")[0] == param


def test_an_unknown_model_and_no_input_at_all(client: httpx.Client) -> None:
    assert ask(client, model="other").status_code == 404
    assert client.post("/v1/responses", json={"model": "echo"}).status_code == 400


def test_events_in_order_and_numbered(client: httpx.Client) -> None:
    blocks = ask(client, stream=True).text.strip().split("\n\n")
    values = [json.loads(block.split("\ndata: ")[1]) for block in blocks]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    assert all(block.startswith(f"event: {value['type']}\n") for block, value in zip(blocks, values, strict=True))
    kinds = [value["type"].removeprefix("response.") for value in values]
    assert [kind for kind in kinds if kind != "output_text.delta"] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert values[-1]["response"]["output_text"] == "hello" and values[-1]["response"]["usage"]["output_tokens"] == 6


def test_a_refusal_before_the_first_event_has_its_status(client: httpx.Client) -> None:
    reply = ask(client, input="x" * 5000, stream=True)
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "context_length_exceeded"


# ---------------------------------------------------------------- the official client


def test_sdk_create_and_stream(sdk: openai.OpenAI) -> None:
    whole = sdk.responses.create(model="echo", input="hello")
    assert whole.output_text == "hello" and whole.status == "completed"
    with sdk.responses.stream(model="echo", input="hello") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        last = stream.get_final_response()
    assert text == last.output_text == "hello" and last.usage == whole.usage


def test_sdk_tools_whole_and_streamed_and_their_results() -> None:
    model = echo_text_engine(script="see" + CALL)
    with serving(model) as (_, http):
        sdk = sdk_of(http)
        asked: dict[str, Any] = {"model": "echo", "input": "hello", "tools": [TOOL]}
        whole = sdk.responses.create(**asked)
        with sdk.responses.stream(**asked) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
        for one in (whole, streamed):
            message, call = one.output
            assert message.type == "message" and one.output_text == "see" and one.status == "completed"
            assert call.type == "function_call" and call.call_id
            assert call.name == "add" and json.loads(call.arguments) == {"a": 1, "b": "二"}
        assert kinds.count("response.function_call_arguments.done") == 1
        items = [{"role": "user", "content": "hello"}, *(item.model_dump(exclude_none=True) for item in whole.output),
                 *({"type": "function_call_output", "call_id": item.call_id, "output": "three"}
                   for item in whole.output[1:])]  # fmt: skip
        assert sdk.responses.create(**asked | {"input": items}).status == "completed"
        assert prompt_of(model).count("three") == 1


def test_reasoning_text_and_two_calls_are_four_items() -> None:
    items = Items()
    chunks = [
        Chunk(reasoning="hm"), Chunk(reasoning="m", text="a"), Chunk(text="b"),
        Chunk(tool_calls=(ToolCallDelta(0, "c0", "f", "{}"), ToolCallDelta(1, "c1", "g", '{"a"'))),
        Chunk(tool_calls=(ToolCallDelta(1, arguments=":1}"),)),
    ]
    told = [event for chunk in chunks for event in items.feed(chunk)] + list(items.close())
    kinds = [item["type"] for item in items.output]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    reasoning, message, first, second = items.output
    assert reasoning["content"][0]["text"] == "hmm" and message["content"][0]["text"] == "ab"
    assert (first["call_id"], first["arguments"]) == ("c0", "{}")
    assert (second["call_id"], second["name"], second["arguments"]) == ("c1", "g", '{"a":1}')
    added = [event["output_index"] for event in told if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert added == [0, 1, 2, 3] and done == items.output
