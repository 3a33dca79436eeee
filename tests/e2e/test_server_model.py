"""The server on a real engine: a tiny random checkpoint, by the official clients. What only a model can show."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import anthropic
import httpx
import openai
import pydantic
import pytest
from tests.support.server_process import ROOT, ServerProcess, server_process

NAME = "internlm-chat-7b"
HELLO = [{"role": "user", "content": "hello"}]


class Animal(pydantic.BaseModel):
    # A random model would fill any further property that it may write.
    model_config = pydantic.ConfigDict(extra="forbid")

    kind: Literal["fox", "hen"]
    wild: bool
    legs: Literal[2, 4]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("tiny") / "internlm2"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run(
        [sys.executable, "-m", "tokenmill", "make-tiny", "internlm2", str(folder)],
        check=True, capture_output=True, env=environment, timeout=600,
    )
    command = [sys.executable, "-m", "tokenmill", "serve", "api_server", str(folder)]
    with server_process(command, "--model-name", NAME) as process:
        yield process


@pytest.fixture(scope="module")
def sdk(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_structured_output_through_parse_and_stream(sdk: openai.OpenAI) -> None:
    for seed in range(3):
        done = sdk.chat.completions.parse(
            model=NAME, messages=HELLO, response_format=Animal,  # type: ignore[arg-type]
            max_tokens=200, temperature=1.5, seed=seed,
        )
        assert isinstance(done.choices[0].message.parsed, Animal)
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": Animal.model_json_schema()}}
    chunks = sdk.chat.completions.create(
        model=NAME, messages=HELLO, response_format=schema,  # type: ignore[call-overload]
        max_tokens=200, stream=True, n=2, seed=1,
    )
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(isinstance(Animal.model_validate_json(text), Animal) for text in texts)
    parsed = sdk.responses.parse(
        model=NAME, input="hello", text_format=Animal, max_output_tokens=200, temperature=0
    )
    assert isinstance(parsed.output_parsed, Animal)


def test_a_grammar_that_is_none_is_400(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(
            model=NAME, messages=HELLO, response_format={"type": "regex", "regex": "(("}  # type: ignore[call-overload]
        )
    assert refused.value.param == "response_format"


def test_ppl_is_what_echoed_logprobs_say(server: ServerProcess, sdk: openai.OpenAI) -> None:
    text = "The fox sat under the tree."
    ppl = httpx.post(f"{server.url}/get_ppl", json={"input": text}, timeout=300).json()["ppl"]
    echoed = sdk.completions.create(model=NAME, prompt=text, echo=True, logprobs=0, max_tokens=0)
    logprobs = echoed.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    values = [value for value in logprobs.token_logprobs if value is not None]
    assert ppl == pytest.approx(-sum(values) / len(values), abs=1e-5)


def test_embeddings_are_of_length_one_and_the_same_alone_and_together(sdk: openai.OpenAI) -> None:
    texts = ["hello", "The fox sat under the tree.", "写一个童话故事"]
    together = [item.embedding for item in sdk.embeddings.create(model=NAME, input=texts).data]
    alone = [sdk.embeddings.create(model=NAME, input=text).data[0].embedding for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert sum(x * x for x in one) == pytest.approx(1, abs=1e-5)
        assert one == pytest.approx(other, abs=1e-4)
    assert together[0] != pytest.approx(together[1], abs=1e-2)


def test_every_dialect_gets_the_same_greedy_answer(server: ServerProcess, sdk: openai.OpenAI) -> None:
    text = sdk.chat.completions.create(
        model=NAME, messages=HELLO, temperature=0, max_tokens=12  # type: ignore[arg-type]
    ).choices[0].message.content
    claude = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    count = claude.messages.count_tokens(model=NAME, messages=HELLO).input_tokens  # type: ignore[arg-type]
    body = {"model": NAME, "messages": HELLO, "temperature": 0, "max_tokens": 12}
    headers = {"anthropic-version": "2023-06-01"}
    reply = httpx.post(f"{server.url}/v1/messages", json=body, headers=headers, timeout=300).json()
    assert reply["content"][0]["text"] == text and reply["usage"]["input_tokens"] == count
    assert sdk.responses.create(model=NAME, input="hello", temperature=0, max_output_tokens=12).output_text == text
    http = httpx.Client(base_url=server.url, timeout=300)
    ids = http.post("/tokenize", json={"messages": HELLO}).json()["tokens"]
    assert len(ids) == count
    native = http.post("/generate", json={"input_ids": ids, "temperature": 0, "max_tokens": 12}).json()
    assert native["text"] == text
    said = {"prompt": "hello", "temperature": 0, "request_output_len": 12}
    assert http.post("/v1/chat/interactive", json=said).json()["text"] == text
    assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 256
    http.close()
