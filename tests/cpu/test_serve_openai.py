"""Shapes of the OpenAI endpoints, by raw HTTP and by the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from tests.support.http_server import HELLO, Live, running


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def no_leak(live: Live) -> Iterator[None]:
    yield
    live.settle()


@pytest.fixture(scope="module")
def sdk(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a stream whose end mark is there."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    blocks = reply.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


# ---------------------------------------------------------------- chat


def test_chat_answers_with_the_whole_shape(live: Live) -> None:
    body = live.chat().json()
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion"
    assert body["model"] == "fake" and body["service_tier"] is None
    [choice] = body["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": "echo hello world", "reasoning_content": None, "tool_calls": None
    }
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert body["usage"] == {
        "prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_the_tutorials_exact_post_answers_200(live: Live) -> None:
    body = {
        "model": "fake", "messages": "写一个300字的童话故事", "temperature": 0.7, "top_p": 1, "n": 1, "max_tokens": 512,
        "stop": False, "stream": False, "presence_penalty": 0, "frequency_penalty": 0, "user": "string",
        "repetition_penalty": 1, "renew_session": False, "ignore_eos": False,
    }
    reply = live.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == "echo 写一个300字的童话故事"
    request = live.engine.seen[-1]
    # A string goes to the model as it is, without the chat template.
    assert (request.prompt, request.chat) == ("写一个300字的童话故事", False)
    assert request.stop_strings == () and request.sampling.temperature == 0.7


def test_chat_stream_is_what_lmdeploys_clients_check(live: Live) -> None:
    parts = events(live.chat(stream=True))
    choices = [part["choices"][0] for part in parts]
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert len({part["id"] for part in parts}) == 1
    assert all(choice["delta"]["role"] == "assistant" for choice in choices)
    assert all(isinstance(choice["delta"]["content"], str) for choice in choices)
    assert "".join(choice["delta"]["content"] for choice in choices) == "echo hello world"
    assert [choice.get("finish_reason") for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"]["content"] == "" and "logprobs" not in choices[-1]
    assert not any("usage" in part for part in parts)


def test_chat_stream_usage_comes_last_and_null_before(live: Live) -> None:
    parts = events(live.chat(stream=True, stream_options={"include_usage": True}))
    assert all(part["usage"] is None for part in parts[:-1])
    assert parts[-1]["choices"] == [] and parts[-1]["usage"]["total_tokens"] == 5


def test_n_choices_with_a_seed_differ_and_repeat(live: Live) -> None:
    first, again = (live.chat(n=3, seed=4).json() for _ in range(2))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == ["four echo hello world", "five echo hello world", "six echo hello world"]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert first["usage"]["prompt_tokens"] == 2 and first["usage"]["completion_tokens"] == 12


def test_n_choices_stream_under_their_own_index(live: Live) -> None:
    texts = {0: "", 1: ""}
    for part in events(live.chat(stream=True, n=2, seed=1)):
        for choice in part["choices"]:
            texts[choice["index"]] += choice["delta"]["content"]
    assert texts == {0: "one echo hello world", 1: "two echo hello world"}


@pytest.mark.parametrize(
    ("stop", "strings"),
    [("world", ("world",)), (["x", "world"], ("x", "world")), (None, ()), (False, ()), ([], ())],
)
def test_stop_in_every_form(live: Live, stop: Any, strings: tuple[str, ...]) -> None:
    reply = live.chat(stop=stop).json()
    assert live.engine.seen[-1].stop_strings == strings
    expected = "echo hello " if strings else "echo hello world"
    assert reply["choices"][0]["message"]["content"] == expected


def test_max_completion_tokens_wins_and_length_is_said(live: Live) -> None:
    body = live.chat(max_tokens=3, max_completion_tokens=2).json()
    assert body["choices"][0]["finish_reason"] == "length" and body["usage"]["completion_tokens"] == 2


def test_every_sampling_field_reaches_the_engine(live: Live) -> None:
    fields = {
        "temperature": 0.3, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": -1,
        "frequency_penalty": 2, "logit_bias": {"5": -100, "6": 3.5}, "seed": -(1 << 63), "min_new_tokens": 1,
        "ignore_eos": True, "skip_special_tokens": False, "include_stop_str_in_output": True, "max_tokens": 4,
        "stop_token_ids": [9], "cache_salt": "mine",
    }
    assert live.chat(**fields).status_code == 200
    request = live.engine.seen[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.3, 0.5, 7, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.2, -1.0, 2.0)
    assert sampling.logit_bias == ((5, -100.0), (6, 3.5)) and sampling.seed == -(1 << 63)
    assert (request.min_new_tokens, request.max_new_tokens, request.stop_token_ids) == (1, 4, (9,))
    assert request.ignore_eos and request.include_stop and not request.skip_special_tokens
    assert request.cache_salt == "mine"


def test_chat_logprobs_have_tokens_bytes_and_alternatives(live: Live) -> None:
    content = live.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == "echo hello world"
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in content)
    assert [len(entry["top_logprobs"]) for entry in content] == [2, 2, 2]


def test_content_parts_are_joined_and_roles_kept(live: Live) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "x": 1},
    ]
    assert live.chat(messages=messages).status_code == 200
    assert live.engine.seen[-1].prompt == (
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "a\nb"}
    )


def test_tools_pass_through_and_none_drops_them(live: Live) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    assert live.chat(tools=[tool]).status_code == 200
    assert live.engine.seen[-1].tools == (tool,)
    assert live.chat(tools=[tool], tool_choice="none").status_code == 200
    assert live.engine.seen[-1].tools == ()


def test_template_options_reach_the_template(live: Live) -> None:
    assert live.chat(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low").status_code == 200
    assert live.engine.seen[-1].template_options == {"enable_thinking": False, "reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("form", "kind", "text"),
    [
        ({"type": "json_object"}, "json_object", "{}"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}, "json_schema",
         '{"type":"object"}'),
        ({"type": "json_schema", "schema": {"type": "object"}}, "json_schema", '{"type":"object"}'),
        ({"type": "regex_schema", "regex_schema": "a+"}, "regex", "a+"),
        ({"type": "regex", "regex": "a+"}, "regex", "a+"),
        ({"type": "grammar", "grammar": 'start: "a"'}, "ebnf", 'start: "a"'),
        ({"type": "choice", "choice": ["a", "b"]}, "choice", '["a","b"]'),
    ],
)  # fmt: skip
def test_response_formats_reach_the_engine_as_grammars(live: Live, form: dict[str, Any], kind: str, text: str) -> None:
    assert live.chat(response_format=form).status_code == 200
    grammar = live.engine.seen[-1].grammar
    assert grammar is not None and (grammar.kind, grammar.text) == (kind, text)


@pytest.mark.parametrize("form", [{"type": "xml"}, {"type": 5}, {"type": "json_schema"}, {"type": "regex"},
                                  {"type": "json_schema", "json_schema": {"schema": 5}}, 5])  # fmt: skip
def test_response_formats_that_are_none(live: Live, form: Any) -> None:
    reply = live.chat(response_format=form)
    assert reply.status_code == 400 and reply.json()["param"] == "response_format"


def test_unknown_fields_are_ignored_and_counted(live: Live) -> None:
    def count() -> float:
        lines = live.client.get("/metrics").text.splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith("tokenmill:unknown_fields_total")))

    before = count()
    assert live.chat(renew_session=False, another={"a": 1}).status_code == 200
    assert count() == before + 2


# ---------------------------------------------------------------- completions


def test_completion_prompts_in_every_form(live: Live) -> None:
    for prompt, texts in (
        ("one two", ["echo one two"]),
        (["one", "two three"], ["echo one", "echo two three"]),
        ([1, 2], ["echo one two"]),
        ([[1], [2, 3]], ["echo one", "echo two three"]),
    ):
        body = live.complete(prompt).json()
        assert [choice["text"] for choice in body["choices"]] == texts
        assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert body["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_completion_n_by_prompts_in_order(live: Live) -> None:
    body = live.complete(["one", "two"], n=2, seed=0).json()
    assert [choice["text"] for choice in body["choices"]] == [
        "zero echo one", "one echo one", "zero echo two", "one echo two"
    ]
    assert body["usage"]["prompt_tokens"] == 2


def test_completion_stream_uses_the_right_index(live: Live) -> None:
    texts = {0: "", 1: ""}
    finishes = {}
    for part in events(live.complete(["one", "two"], stream=True, stream_options={"include_usage": True})):
        for choice in part["choices"]:
            texts[choice["index"]] += choice["text"]
            if "finish_reason" in choice:
                finishes[choice["index"]] = choice["finish_reason"]
    assert texts == {0: "echo one", 1: "echo two"} and finishes == {0: "stop", 1: "stop"}
    assert part["usage"]["total_tokens"] == 6


def test_completion_logprobs_in_openais_shape(live: Live) -> None:
    logprobs = live.complete("one", logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["echo", " one"] and logprobs["text_offset"] == [0, 4]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]
    # The drawn token stands among its alternatives.
    assert logprobs["top_logprobs"][0] == {"zero": -1.0, "one": -2.0, "echo": -0.5}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["one two", [1, 2]])
def test_echo_with_logprobs_covers_the_prompt_as_lm_eval_reads_it(live: Live, stream: bool, prompt: Any) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    reply = live.complete(prompt, stream=stream, **fields)
    if stream:
        pieces = [part["choices"][0] for part in events(reply)]
        text = "".join(piece["text"] for piece in pieces)
        logprobs = {
            name: [item for piece in pieces if "logprobs" in piece for item in piece["logprobs"][name]]
            for name in ("tokens", "token_logprobs", "text_offset")
        }
    else:
        choice = reply.json()["choices"][0]
        text, logprobs = choice["text"], choice["logprobs"]
    assert text == "one twoecho"
    assert logprobs["tokens"] == ["one", "two", "echo"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5]
    assert logprobs["text_offset"] == [0, 3, 6]


def test_echo_alone_with_no_new_token(live: Live) -> None:
    body = live.complete("one two", echo=True, max_tokens=0, logprobs=0).json()
    assert body["choices"][0]["text"] == "one two" and body["usage"]["completion_tokens"] == 0
    assert body["choices"][0]["logprobs"]["tokens"] == ["one", "two"]
    assert live.complete("one two", max_tokens=0).status_code == 400


# ---------------------------------------------------------------- models, docs


def test_models_list_and_card(live: Live) -> None:
    [card] = live.client.get("/v1/models").json()["data"]
    assert card["id"] == card["root"] == "fake" and card["max_model_len"] == 512
    assert card["permission"][0]["allow_sampling"] is True
    assert live.client.get("/v1/models/fake").json()["id"] == "fake"
    assert live.client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize("path", ["/", "/ui"])
def test_pages_need_no_other_host(live: Live, path: str) -> None:
    page = live.client.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text and "https://" not in page.text and "src=" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_openapi_document_resolves(live: Live) -> None:
    document = live.client.get("/openapi.json").json()
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert {"ChatRequest", "CompletionRequest"} <= names <= set(document["components"]["schemas"])
    assert {"/v1/models", "/v1/chat/completions", "/v1/completions", "/health"} <= set(document["paths"])


# ---------------------------------------------------------------- the official client


def test_sdk_tutorial_script(sdk: openai.OpenAI) -> None:
    name = sdk.models.list().data[0].id
    answer = sdk.chat.completions.create(
        model=name,
        messages=[{"role": "system", "content": "你是一个助手"}, {"role": "user", "content": "介绍一下你自己"}],
        temperature=0.8,
        top_p=0.8,
    )
    assert answer.choices[0].message.content == "echo 你是一个助手 介绍一下你自己"
    assert answer.usage is not None and answer.usage.total_tokens == 5


def test_sdk_streams_chat_and_completions(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="fake", messages=HELLO["messages"], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "echo hello world"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    pieces = sdk.completions.create(model="fake", prompt="one", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "echo one"


def test_sdk_sees_typed_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.chat.completions.create(model="other", messages=HELLO["messages"])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(model="fake", messages=HELLO["messages"], top_p=0)
    assert bad.value.param == "top_p" and "greater than 0" in str(bad.value)
    with pytest.raises(openai.BadRequestError, match="context length") as long:
        sdk.chat.completions.create(model="fake", messages=[{"role": "user", "content": "word " * 600}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError, match="failed in the engine"):
        sdk.chat.completions.create(model="fake", messages=[{"role": "user", "content": "boom"}])


async def test_async_sdk_side_by_side(live: Live) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model="fake", messages=HELLO["messages"]) for _ in range(20))
        )
    assert {answer.choices[0].message.content for answer in answers} == {"echo hello world"}


def test_token_ids_where_they_are_asked_for(live: Live) -> None:
    body = live.chat(return_token_ids=True).json()
    prompt = live.client.post("/v1/encode", json={"input": "hello world"}).json()["input_ids"]
    assert body["prompt_token_ids"] == prompt and body["choices"][0]["output_ids"] == [0, 1, 2]
    assert body["choices"][0]["token_ids"] == [0, 1, 2]
    pieces = [e["choices"][0] for e in events(live.chat(return_token_ids=True, stream=True)) if e["choices"]]
    assert [token for piece in pieces for token in piece.get("output_ids", ())] == [0, 1, 2]
    assert pieces[0]["prompt_token_ids"] == prompt
    choice = live.complete(return_token_ids=True).json()["choices"][0]
    assert choice["output_ids"] == [0, 1, 2] and choice["prompt_token_ids"] == prompt
    assert "output_ids" not in live.chat().json()["choices"][0]


def test_ids_stand_in_for_messages(live: Live) -> None:
    """LMDeploy's clients send no messages beside them, or empty ones."""
    ids = [1, 2]
    for messages in ({"messages": []}, {"messages": ""}, {"messages": None}, {}):
        body = {"model": "fake", "input_ids": ids, **messages}
        reply = live.client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        assert live.engine.seen[-1].prompt == (1, 2) and not live.engine.seen[-1].chat
    for bad in ({"input_ids": ids}, {"input_ids": [], "messages": []}, {"input_ids": [-1], "messages": []}):
        assert live.chat(**bad).status_code == 400, bad
    assert "cannot be combined" in live.chat(input_ids=ids).json()["message"]
    assert live.client.post("/v1/chat/completions", json={"model": "fake"}).json()["error"]["param"] == "messages"


def test_log_probabilities_as_pairs(live: Live) -> None:
    choice = live.chat(return_logprob=True).json()["choices"][0]
    assert choice["output_token_logprobs"] == [[-0.5, 7]] * 3 and choice["logprobs"] is None
    pieces = [e["choices"][0] for e in events(live.chat(return_logprob=True, stream=True)) if e["choices"]]
    assert [pair for piece in pieces for pair in piece.get("output_token_logprobs", ())] == [[-0.5, 7]] * 3
    assert not any("logprobs" in piece for piece in pieces)
    both = live.chat(return_logprob=True, logprobs=True).json()["choices"][0]
    assert len(both["logprobs"]["content"]) == len(both["output_token_logprobs"]) == 3


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
CHOICES: list[tuple[Any, list[str], str]] = [
    (None, ["f", "g"], "auto"), ("auto", ["f", "g"], "auto"), ("required", ["f", "g"], "required"),
    ("none", [], "auto"),
    ({"type": "function", "function": {"name": "g"}}, ["g"], "required"),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "name": "g"}]}}, ["g"],
     "auto"),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "shown", "wish"), CHOICES)
def test_tool_choice_reaches_the_engine(live: Live, choice: Any, shown: list[str], wish: str) -> None:
    assert live.chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False).status_code == 200
    request = live.engine.seen[-1]
    assert [tool["function"]["name"] for tool in request.tools] == shown
    assert request.tool_choice == wish and not request.parallel_tool_calls


@pytest.mark.parametrize(
    "fields",
    [{"tool_choice": "required"}, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "h"}}},
     {"tools": TOOLS, "tool_choice": "any"}, {"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}},
     {"tools": TOOLS, "tool_choice": 3}],
)  # fmt: skip
def test_what_is_no_tool_choice(live: Live, fields: dict[str, Any]) -> None:
    answer = live.chat(**fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] in ("tools", "tool_choice")
