"""LMDeploy's own endpoints, pooling and embeddings, by raw HTTP; embeddings by the official SDK too."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tests.support.echo import EchoModel, prompt_of
from tests.support.http_server import PATIENCE_S, Live, endless_engine, running, wait_for


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with running() as server:
        yield server


# ---------------------------------------------------------------- /generate


def test_generate_by_prompt_and_by_ids(client: httpx.Client, model: EchoModel) -> None:
    for body in ({"prompt": "hello"}, {"input_ids": list(b"hello")}):
        answer = client.post("/generate", json=body | {"return_logprob": True}).json()
        assert answer["text"] == "hello" and answer["output_ids"] == list(b"hello")
        meta = answer["meta_info"]
        assert meta["finish_reason"] == {"type": "stop"} and meta["completion_tokens"] == 6
        assert meta["output_token_logprobs"] == [[-0.5, token] for token in b"hello"]
    assert "im_start" not in prompt_of(model)
    assert model.fake.seen[-1].stop.max_new_tokens == 128


def test_generate_streams_what_is_new(client: httpx.Client) -> None:
    reply = client.post("/generate", json={"prompt": "hello", "stream": True, "max_tokens": 3})
    blocks = reply.text.strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    parts = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]
    assert "".join(part["text"] for part in parts) == "hel"
    assert [i for part in parts for i in part["output_ids"]] == list(b"hel")
    assert [part["meta_info"]["completion_tokens"] for part in parts] == [1, 2, 3]
    assert [part["meta_info"]["finish_reason"] for part in parts] == [None, None, {"type": "length"}]


@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"input_ids": []}, {"prompt": "a", "input_ids": [1]},
                                  {"prompt": "a", "max_tokens": 0}, {"input_ids": [-1]}, {"input_ids": [10**6]},
                                  {"prompt": "a", "temperature": 3}, {"prompt": ["a"]}])  # fmt: skip
def test_generate_refuses(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/generate", json=body).status_code == 400


# ---------------------------------------------------------------- interactive


@pytest.mark.parametrize("path", ["/v1/chat/interactive", "/generate"])
def test_interactive_keeps_the_conversation_until_it_is_ended(
    client: httpx.Client, model: EchoModel, path: str
) -> None:
    def say(text: str, **fields: Any) -> dict[str, Any]:
        body = {"prompt": text, "session_id": 7, "interactive_mode": True} | fields
        reply = client.post(path, json=body)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    first = say("one")
    assert first["text"] == "one" and first["finish_reason"] == "stop" and first["history_tokens"] == 0
    second = say("two")
    assert second["text"] == "two" and second["history_tokens"] == first["input_tokens"] + first["tokens"]
    assert prompt_of(model) == (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )
    # Another session knows nothing of it; ending a session forgets it.
    assert say("three", session_id=len(path))["history_tokens"] == 0
    assert say("", request_output_len=0, interactive_mode=False)["tokens"] == 0
    assert say("four")["history_tokens"] == 0
    assert say("five", interactive_mode=False)["history_tokens"] > 0
    assert say("six", interactive_mode=False)["history_tokens"] == 0


def test_interactive_defaults_are_lmdeploys(client: httpx.Client, model: EchoModel) -> None:
    body = {"prompt": [{"role": "user", "content": "a"}], "request_output_len": 5, "stop": False}
    assert client.post("/v1/chat/interactive", json=body).json()["text"] == "a"
    request = model.fake.seen[-1]
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.8, 0.8, 40)
    assert request.stop.max_new_tokens == 5


def test_interactive_streams_plain_lines(client: httpx.Client) -> None:
    reply = client.post("/v1/chat/interactive", json={"prompt": "hello", "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert "".join(line["text"] for line in lines) == "hello"
    assert [line["tokens"] for line in lines] == sorted(line["tokens"] for line in lines)
    assert lines[-1]["finish_reason"] == "stop" and lines[0]["finish_reason"] is None
    broken = client.post("/v1/chat/interactive", json={"prompt": "x" * 5000, "stream": True})
    assert broken.status_code == 400


def test_interactive_cancel_needs_a_session_that_runs() -> None:
    with running(endless_engine()) as live:
        assert live.client.post("/v1/chat/interactive", json={"prompt": "", "cancel": True}).status_code == 400
        stop = {"prompt": "", "session_id": 3, "cancel": True}
        assert live.client.post("/v1/chat/interactive", json=stop).status_code == 400
        body = {"prompt": "a", "session_id": 3, "stream": True, "ignore_eos": True, "interactive_mode": True}
        with httpx.stream("POST", f"{live.url}/v1/chat/interactive", json=body, timeout=PATIENCE_S) as reply:
            wait_for(lambda: bool(live.engine.live))
            assert live.client.post("/v1/chat/interactive", json=stop).status_code == 200
            assert json.loads(list(reply.iter_lines())[-1])["finish_reason"] == "abort"


# ---------------------------------------------------------------- tokens


def test_encode_one_and_many(client: httpx.Client) -> None:
    def encode(value: Any, **fields: Any) -> dict[str, Any]:
        return dict(client.post("/v1/encode", json={"input": value} | fields).json())

    with_bos = encode("hi")
    assert with_bos == {"input_ids": [256, *b"hi"], "length": 3}
    assert encode("hi", add_bos=False) == {"input_ids": list(b"hi"), "length": 2}
    assert encode(["a", "bc"], add_bos=False) == {"input_ids": [[97], [98, 99]], "length": [1, 2]}
    assert encode("hi", do_preprocess=True)["length"] > 20
    assert client.post("/v1/encode", json={"input": 5}).status_code == 400
    assert client.post("/v1/encode", json={"input": ["a"] * 65}).status_code == 400


def test_tokenize_and_back(client: httpx.Client) -> None:
    body = client.post("/tokenize", json={"prompt": "héllo"}).json()
    assert body == {"tokens": [256, *"héllo".encode()], "count": 7, "max_model_len": 4096}
    back = client.post("/detokenize", json={"tokens": body["tokens"]}).json()
    assert back == {"prompt": "héllo"}
    chat = client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    text = client.post("/detokenize", json={"tokens": chat["tokens"], "skip_special_tokens": False}).json()["prompt"]
    assert text == "<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert client.get("/tokenizer_info").json() == {"vocab_size": 264, "max_model_len": 4096}


@pytest.mark.parametrize(("path", "body"), [
    ("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
    ("/detokenize", {"tokens": [264]}), ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": "a"}),
    ("/tokenize", {"prompt": "a\ud800"[:1], "model": None, "messages": []}),
])  # fmt: skip
def test_tokens_refuse(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    assert client.post(path, json=body).status_code == 400


# ---------------------------------------------------------------- scores, pooling


def test_ppl_is_the_mean_cross_entropy(client: httpx.Client, model: EchoModel) -> None:
    # The scripted engine gives every token -0.5.
    assert client.post("/get_ppl", json={"input": "hello"}).json() == {"ppl": 0.5}
    assert client.post("/get_ppl", json={"input": list(b"hello")}).json() == {"ppl": 0.5}
    assert model.fake.seen[-1].stop.max_new_tokens == 0
    assert client.post("/get_ppl", json={"input": [5]}).status_code == 400
    assert client.post("/get_ppl", json={"input": ""}).status_code == 400


def pooled(*words: str) -> list[float]:
    """What the fake says of a prompt: its number of words, and two that are always the same."""
    return [float(len(words)), 3.0, 4.0]


def test_pooling_and_embeddings(live: Live) -> None:
    body = live.client.post("/pooling", json={"model": "fake", "input": ["a", "b c"]}).json()
    assert body["id"].startswith("pool-") and body["object"] == "list"
    assert [item["data"] for item in body["data"]] == [pooled("a"), pooled("b", "c")]
    assert [(item["index"], item["object"]) for item in body["data"]] == [(0, "pooling"), (1, "pooling")]
    assert body["usage"]["prompt_tokens"] == 3
    [item] = live.client.post("/v1/embeddings", json={"input": "a"}).json()["data"]
    norm = math.sqrt(1 + 9 + 16)
    assert item["embedding"] == pytest.approx([1 / norm, 3 / norm, 4 / norm], rel=1e-6)
    [item] = live.client.post("/v1/embeddings", json={"input": [1, 2], "dimensions": 2}).json()["data"]
    assert item["embedding"] == pytest.approx([2 / math.sqrt(13), 3 / math.sqrt(13)], rel=1e-6)
    raw = live.client.post("/v1/embeddings", json={"input": "a", "encoding_format": "base64"}).json()
    assert np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")[0] == pytest.approx(1 / norm)


@pytest.mark.parametrize("body", [{"input": []}, {"input": ""}, {"input": ["a"] * 65}, {"input": [[1], []]},
                                  {"input": [-1]}, {"input": "a", "encoding_format": "hex"},
                                  {"input": "a", "dimensions": 4}, {"input": "a", "dimensions": 0}])  # fmt: skip
def test_embeddings_refuse(live: Live, body: dict[str, Any]) -> None:
    assert live.client.post("/v1/embeddings", json=body).status_code == 400
    assert live.client.post("/pooling", json={"input": "a", "model": "other"}).status_code == 404


def test_embeddings_by_the_sdk(live: Live) -> None:
    sdk = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    answer = sdk.embeddings.create(model="fake", input=["a", "b c d"])
    assert len(answer.data) == 2 and answer.usage.total_tokens == 4
    for item in answer.data:
        assert sum(x * x for x in item.embedding) == pytest.approx(1, rel=1e-5)


def test_rerank_sorts_by_the_cosine_of_embeddings(live: Live) -> None:
    # The fake's pooled state of n words is (n, 3, 4).
    documents = ["one two three four five six", {"text": "one"}, "one two"]
    body = {"query": "hello", "documents": documents, "model": "fake"}
    answer = live.client.post("/v1/rerank", json=body).json()
    cosine = [(n + 25) / math.sqrt(26 * (n * n + 25)) for n in (6, 1, 2)]
    assert [result["index"] for result in answer["results"]] == [1, 2, 0]
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(cosine[result["index"]], abs=1e-6)
    assert answer["results"][0]["document"] == {"text": "one"} and answer["usage"]["total_tokens"] == 1 + 6 + 1 + 2
    best = live.client.post("/rerank", json=body | {"top_n": 1, "return_documents": False}).json()["results"]
    assert best == [{"index": 1, "relevance_score": pytest.approx(1.0)}]


@pytest.mark.parametrize("fields", [{"documents": []}, {"query": ""}, {"top_n": 0}, {"documents": [3]},
                                    {"documents": ["x"] * 256}])  # fmt: skip
def test_what_cannot_be_reranked(live: Live, fields: dict[str, Any]) -> None:
    body = {"query": "hello", "documents": ["one"]} | fields
    assert live.client.post("/v1/rerank", json=body).status_code == 400
