"""Official clients and the conformance suite against a live server on a tiny random checkpoint.

What the model says is noise; what these clients make of it (types, calls, counts) is not. CI has langchain-openai
where pip has it; litellm, of 200 MB, is used where somebody has installed it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import openai
import pydantic
import pytest
from scripts import schema_samples
from tests.support.fake_text import FakeTextEngine
from tests.support.http_server import PATIENCE_S, running
from tests.support.server_process import ROOT, ServerProcess, server_process

NAME = "tiny"
HELLO: Any = [{"role": "user", "content": "hello"}]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")}


class Place(pydantic.BaseModel):
    """Look up the weather of a place."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: Literal["Paris", "Tokyo"]
    unit: Literal["C", "F"]


TOOL: Any = {"type": "function", "function": {"name": "Place", "parameters": Place.model_json_schema()}}
# Enough tokens for the longest call or object its grammar allows, white space included.
FIXED: Any = {"max_tokens": 500, "max_retries": 0, "temperature": 0, "seed": 1, "timeout": 120}
# By body, as not every version of Anthropic's client has the parameter.
GREEDY = {"temperature": 0}
NAMED: Any = {"type": "function", "function": {"name": "Place"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("tiny") / "internlm2"
    subprocess.run(
        [sys.executable, "-m", "tokenmill", "make-tiny", "internlm2", str(folder)],
        check=True, capture_output=True, env=ENVIRONMENT, timeout=600,
    )
    command = [sys.executable, "-m", "tokenmill", "serve", "api_server", str(folder)]
    # Hermes' dialect, since InternLM2 ends its turn with its first call.
    with server_process(
        command, "--model-name", NAME, "--session-len", "1024", "--tool-call-parser", "hermes"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def sdk(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(server: ServerProcess) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def check_api(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokenmill", "check", "api", url, *words]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600, check=False)


def test_the_conformance_suite_passes_whole(server: ServerProcess) -> None:
    done = check_api(server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout and done.stdout.rstrip().endswith("kept")


def test_the_conformance_suite_says_what_a_server_fails() -> None:
    # This engine says words whatever the form it is asked for, and calls no tools.
    with running(FakeTextEngine()) as live:
        done = check_api(live.url, "--only", "models", "structured", "tools", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    failed = {(row["group"], row["reason"]) for row in found if not row["passed"]}
    assert done.returncode == 1 and {group for group, _ in failed} == {"structured", "tools"}
    assert any("not JSON: 'echo Say hello.'" in reason for _, reason in failed)
    assert any("no tool call" in reason for _, reason in failed)
    gone = check_api("127.0.0.1:9")
    assert gone.returncode != 0 and gone.stderr.startswith("error: no server") and gone.stderr.count("\n") == 1


def test_openai_tools_required_named_and_streamed(sdk: openai.OpenAI) -> None:
    for choice in ("required", NAMED):
        done = sdk.chat.completions.create(
            model=NAME, messages=HELLO, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=160,
            seed=1,
        )
        [call] = done.choices[0].message.tool_calls or []
        assert call.type == "function" and call.function.name == "Place"
        Place.model_validate_json(call.function.arguments)
        assert done.choices[0].finish_reason == "tool_calls"
    with sdk.chat.completions.stream(
        model=NAME, messages=HELLO, tools=[openai.pydantic_function_tool(Place)], tool_choice=NAMED,
        parallel_tool_calls=False, max_tokens=160, seed=1,
    ) as stream:
        [parsed] = stream.get_final_completion().choices[0].message.tool_calls or []
    assert isinstance(parsed.function.parsed_arguments, Place)


def test_openai_parallel_calls_and_their_results(server: ServerProcess, sdk: openai.OpenAI) -> None:
    # Nothing but an end or a further call may follow a call, and ends are made unlikely.
    body = {"prompt": "<|im_end|></s>"}
    text = httpx.post(f"{server.url}/tokenize", json=body, timeout=PATIENCE_S).json()["tokens"]
    done = sdk.chat.completions.create(
        model=NAME, messages=HELLO, tools=[TOOL], tool_choice="required", max_tokens=200,
        logit_bias={str(token): -100 for token in text}, seed=1,
    )
    calls = done.choices[0].message.tool_calls or []
    assert len({call.id for call in calls}) == len(calls) >= 2
    assert all(call.type == "function" and Place.model_validate_json(call.function.arguments) for call in calls)
    said = {"role": "assistant", "tool_calls": [call.model_dump() for call in calls[:2]]}
    answered = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls[:2]]
    more = sdk.chat.completions.create(model=NAME, messages=[*HELLO, said, *answered], max_tokens=5, seed=1)
    assert more.usage is not None and 0 < more.usage.completion_tokens <= 5


async def test_openai_async_and_streamed_parse(server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
        answers = await asyncio.gather(*(
            sdk.chat.completions.parse(model=NAME, messages=HELLO, response_format=Place, max_tokens=100, seed=seed)
            for seed in range(4)
        ))
        assert all(isinstance(answer.choices[0].message.parsed, Place) for answer in answers)
        stream = await sdk.completions.create(model=NAME, prompt="hello", max_tokens=5, seed=1, stream=True)
        assert [event async for event in stream][-1].choices[0].finish_reason in ("length", "stop")
        models = [model.id async for model in sdk.models.list()]
        assert models == [NAME]


def test_openai_responses_with_tools(sdk: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "Place", "parameters": Place.model_json_schema(), "strict": True}
    kinds = []
    with sdk.responses.stream(
        model=NAME, input="hello", tools=[tool], tool_choice="required", parallel_tool_calls=False,
        max_output_tokens=160, temperature=0,
    ) as stream:
        kinds = [event.type for event in stream]
        [call] = stream.get_final_response().output
    assert call.type == "function_call" and Place.model_validate_json(call.arguments)
    assert "response.function_call_arguments.done" in kinds


def test_anthropic_stream_tools_and_counting(claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": "Place", "description": "look", "input_schema": Place.model_json_schema()}
    for choice in ({"type": "any"}, {"type": "tool", "name": "Place"}):
        one = choice | {"disable_parallel_tool_use": True}
        with claude.messages.stream(
            model=NAME, messages=HELLO, tools=[tool], tool_choice=one, max_tokens=300,  # type: ignore[arg-type]
            extra_body=GREEDY,
        ) as stream:
            message = stream.get_final_message()
        blocks = [block for block in message.content if block.type == "tool_use"]
        assert blocks and all(Place.model_validate(block.input) for block in blocks)
        assert message.stop_reason == "tool_use"
    count = claude.messages.count_tokens(model=NAME, messages=HELLO, tools=[tool]).input_tokens
    used = claude.messages.create(model=NAME, messages=HELLO, tools=[tool], max_tokens=4).usage.input_tokens
    assert count == used
    with claude.messages.stream(model=NAME, messages=HELLO, max_tokens=6, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == stream.get_final_text()


def test_strict_tools_of_an_auto_choice_never_break_a_call(sdk: openai.OpenAI) -> None:
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    for seed in range(3):
        done = sdk.chat.completions.create(
            model=NAME, messages=HELLO, tools=[strict], max_tokens=40, seed=seed, temperature=1  # type: ignore[list-item]
        )
        for call in done.choices[0].message.tool_calls or []:
            assert call.type == "function" and Place.model_validate_json(call.function.arguments)


def test_tools_that_cannot_be_enforced_are_refused(sdk: openai.OpenAI) -> None:
    odd = {"type": "function", "function": {"name": "f", "parameters": {"type": "no-such-type"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(
            model=NAME, messages=HELLO, tools=[odd], tool_choice="required"  # type: ignore[list-item]
        )
    assert refused.value.param == "tools"


def test_random_schemas_at_temperature_1_5(server: ServerProcess) -> None:
    """The small form of `scripts/schema_samples.py`."""
    assert schema_samples.run(server.url, count=16, max_tokens=900, threads=4) == []


@pytest.mark.filterwarnings("ignore")
def test_langchain_structured_output_and_tools(server: ServerProcess) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    chat = langchain.ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model=NAME, **FIXED)
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Place, method=method).invoke("hello"), Place)
    said = chat.bind_tools([Place], tool_choice="any", parallel_tool_calls=False).invoke("hello")
    assert [call["name"] for call in said.tool_calls] == ["Place"] and Place.model_validate(said.tool_calls[0]["args"])
    assert said.usage_metadata["input_tokens"] > 0
    pieces = list(chat.bind_tools([Place], tool_choice="Place", parallel_tool_calls=False).stream("hello"))
    joined = pieces[0]
    for piece in pieces[1:]:
        joined = joined + piece
    assert Place.model_validate(joined.tool_calls[0]["args"])


@pytest.mark.filterwarnings("ignore")
def test_litellm_as_client(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    common = {"model": f"openai/{NAME}", "api_base": f"{server.url}/v1", "api_key": "none", "messages": HELLO}
    common["seed"] = 1
    done = litellm.completion(**common, max_tokens=5)
    assert done.usage.completion_tokens <= 5 and isinstance(done.choices[0].message.content, str)
    pieces = [piece.choices[0].delta.content or "" for piece in litellm.completion(
        **common, max_tokens=12, temperature=0, stream=True)]
    whole = litellm.completion(**common, max_tokens=12, temperature=0).choices[0].message.content
    assert "".join(pieces) == whole
    called = litellm.completion(**common, tools=[TOOL], tool_choice="required", max_tokens=300)
    assert all(Place.model_validate_json(c.function.arguments) for c in called.choices[0].message.tool_calls)
    with pytest.raises(litellm.exceptions.BadRequestError):
        litellm.completion(**common, temperature=9)
