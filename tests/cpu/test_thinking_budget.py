"""Budgets of reasoning on a whole served model whose tokenizer has the tags, and who asks for them how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_text import FakeTextEngine
from tests.support.http_server import LOOPBACK

from tokenmill.api.build import open_text_engine
from tokenmill.api.contract import TextEngine
from tokenmill.api.parsers import ParserNames
from tokenmill.api.thinking import thinking_of
from tokenmill.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, SchedulerConfig
from tokenmill.errors import RequestError
from tokenmill.models.tiny import make_tiny, write_tokenizer
from tokenmill.serve.anthropic.convert import chat_request
from tokenmill.serve.anthropic.schema import MessagesRequest
from tokenmill.serve.openai.convert import chat_job
from tokenmill.serve.openai.schema import ChatRequest
from tokenmill.tokenize.loader import load_tokenizer
from tokenmill.types import GrammarSpec, Sampling, TextRequest, Thinking

THINKS = ParserNames(None, "think_tags")
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
JSON = GrammarSpec("json_schema", json.dumps(SCHEMA))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_tiny("llama", tmp_path_factory.mktemp("thinks"))
    write_tokenizer(path, json.loads((path / "config.json").read_text())["vocab_size"], ("<think>", "</think>"))
    return path


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Any:
    return load_tokenizer(folder).vocabulary


async def open_model(folder: Path, reasoning: str | None = "think_tags") -> TextEngine:
    config = EngineConfig(
        ModelConfig(str(folder)), CacheConfig(num_blocks=64, block_tokens=16),
        SchedulerConfig(max_rows=4, max_step_tokens=128), kernels=KernelConfig("cpu", threads=1),
    )  # fmt: skip
    return await open_text_engine(config, reasoning_parser=reasoning)


def wish(name: str, **fields: Any) -> TextRequest:
    """Greedy; a salt of its own, so that no prefix is found and every prompt is run in the same way."""
    bare = TextRequest(name, "Hi", sampling=Sampling(temperature=0.0), ignore_eos=True, cache_salt=name)
    return replace(bare, **{"max_new_tokens": 16, **fields})


async def answer(engine: TextEngine, request: TextRequest) -> tuple[list[int], str, str, int]:
    """Ids, reasoning, content, reasoning tokens."""
    chunks = [chunk async for chunk in engine.generate(request)]
    ids = [token for chunk in chunks for token in chunk.token_ids]
    texts = "".join(c.reasoning for c in chunks), "".join(c.text for c in chunks)
    return ids, *texts, chunks[-1].usage.reasoning_tokens


async def test_reasoning_is_ended_and_the_answer_goes_on(folder: Path, vocabulary: Any) -> None:
    close = vocabulary.token_id("</think>")
    engine = await open_model(folder)
    try:
        free, *_ = await answer(engine, wish("free"))
        assert len(free) == 16
        for budget in (0, 1, 5):
            thought = free[: free.index(close)] if close in free[:budget] else free[:budget]
            ids, _, _, counted = await answer(engine, wish(f"b{budget}", thinking_budget=budget))
            assert ids[: len(thought) + 1] == [*thought, close] and len(ids) == 16 and counted == len(thought) + 1
        by_template, *_ = await answer(engine, wish("soft", template_options={"thinking_budget": 5}))
        assert close in by_template[:6]
    finally:
        await engine.close()


async def test_a_schema_holds_for_what_follows_reasoning(folder: Path) -> None:
    engine = await open_model(folder)
    try:
        request = wish("schema", thinking_budget=6, grammar=JSON, max_new_tokens=300, ignore_eos=False)
        _, _, content, counted = await answer(engine, request)
        assert counted <= 7 and set(json.loads(content)) == {"a"}
        unthinking = wish("plain", grammar=JSON, max_new_tokens=300, ignore_eos=False,
                          template_options={"enable_thinking": False})  # fmt: skip
        _, reasoning, content, _ = await answer(engine, unthinking)
        assert not reasoning and set(json.loads(content)) == {"a"}
    finally:
        await engine.close()


def test_a_budget_that_cannot_be_kept_is_refused_or_the_templates(vocabulary: Any) -> None:
    request = wish("r", thinking_budget=5)
    for names, asked in ((ParserNames(), request), (THINKS, replace(request, chat=False))):
        with pytest.raises(RequestError, match="--reasoning-parser") as caught:
            thinking_of(asked, names, vocabulary)
        assert caught.value.status == 400
    soft = wish("r", template_options={"thinking_budget": 5})
    assert thinking_of(soft, ParserNames(), vocabulary) is None
    assert thinking_of(wish("r"), THINKS, vocabulary) is None
    close, open_ = vocabulary.token_id("</think>"), vocabulary.token_id("<think>")
    assert thinking_of(soft, THINKS, vocabulary) == Thinking(close, open_, True, 5, False)
    called = replace(soft, grammar=GrammarSpec("tool_calls", "{}"), tool_choice="required")
    assert thinking_of(called, THINKS, vocabulary) == Thinking(close, open_, True, 5, False)
    assert thinking_of(replace(wish("r"), grammar=JSON), THINKS, vocabulary) == Thinking(close, open_, True, None, True)


def test_the_faces_say_it_under_their_names() -> None:
    def asked(body: ChatRequest) -> TextRequest:
        return chat_job(body, FakeTextEngine(), LOOPBACK, None).requests[0]

    chat = {"model": "fake", "messages": "Hi"}
    for name in ("thinking_token_budget", "thinking_budget"):
        assert asked(ChatRequest.model_validate({**chat, name: 7})).thinking_budget == 7
    body = {"model": "fake", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}],
            "thinking": {"type": "enabled", "budget_tokens": 7}}  # fmt: skip
    options = asked(chat_request(MessagesRequest.model_validate(body))).template_options
    assert options == {"enable_thinking": True, "thinking_budget": 7}
