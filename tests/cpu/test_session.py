"""The text engine on an engine that answers by a script: stops, usage, log-probabilities, aborts, refusals, tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.echo import EchoModel, echo_text_engine

from tokenmill.errors import RequestError
from tokenmill.types import Chunk, Finish, GrammarSpec, Message, Request, Sampling, StepOutput, TextRequest, Want

END = 259  # <|im_end|> of the echo tokenizer


def ask(prompt: Any = "hello", **fields: Any) -> TextRequest:
    return TextRequest(**{"id": "r1", "prompt": prompt, "chat": isinstance(prompt, str), **fields})


async def collect(engine: EchoModel, request: TextRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


def run(request: TextRequest, **options: Any) -> tuple[str, Chunk, list[Chunk]]:
    """The text, the last chunk and all chunks of an answer; nothing is left behind."""

    async def work() -> list[Chunk]:
        engine = echo_text_engine(**options)
        try:
            return await collect(engine, request)
        finally:
            assert not engine.fake.live
            await engine.close()

    chunks = asyncio.run(work())
    assert [c.finish for c in chunks[:-1]] == [None] * (len(chunks) - 1) and chunks[-1].finish is not None
    assert chunks[0].prompt_ids is not None and all(c.prompt_ids is None for c in chunks[1:])
    return "".join(c.text for c in chunks), chunks[-1], chunks


def test_a_chat_and_its_usage() -> None:
    text, last, chunks = run(ask("你好, wörld"))
    assert text == "你好, wörld"
    assert (last.finish, last.stop_reason) == (Finish.STOP, END)
    prompt_ids = chunks[0].prompt_ids or ()
    assert last.usage.prompt_tokens == len(prompt_ids) and last.usage.completion_tokens == len(text.encode()) + 1
    assert bytes(t for c in chunks for t in c.token_ids).decode() == text
    assert all("\ufffd" not in c.text for c in chunks)


@pytest.mark.parametrize("group", [1, 2, 5, 100])
def test_the_engines_grouping_changes_nothing(group: int) -> None:
    request = ask(stop_strings=("STOP",), logprobs=True)
    text, last, chunks = run(request, script="一 two ST ST STOP behind", group=group)
    assert text == "一 two ST ST " and last.stop_reason == "STOP" and last.finish is Finish.STOP
    assert last.usage.completion_tokens == len("一 two ST ST STOP".encode())
    ids = [t for c in chunks for t in c.token_ids]
    assert bytes(ids).decode() == "一 two ST ST STOP"
    assert [entry.token_id for c in chunks for entry in c.logprobs] == ids


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="ab狐🙂 ", max_size=20),
    stops=st.lists(st.text(alphabet="ab狐🙂 ", min_size=1, max_size=4), max_size=2),
    group=st.integers(1, 7),
    include=st.booleans(),
)
def test_stop_strings_by_definition(text: str, stops: list[str], group: int, include: bool) -> None:
    request = ask(stop_strings=tuple(stops), include_stop=include)
    said, last, _ = run(request, script=text, group=group)
    ends = [(end, stop) for end in range(1, len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    if not ends:
        # The end-of-turn token is shown too where stops are.
        assert said == text + ("<|im_end|>" if include else "") and last.stop_reason == END
        return
    end = min(ends)[0]
    stop = max((stop for at, stop in ends if at == end), key=len)
    assert said == text[: end if include else end - len(stop)]
    assert last.stop_reason == stop and last.usage.completion_tokens == len(text[:end].encode())


def test_a_stop_string_ends_the_engines_work() -> None:
    async def work() -> None:
        engine = echo_text_engine(script="one STOP" + "x" * 5000, delay_s=0.0005)
        await collect(engine, ask(stop_strings=("STOP",)))
        assert not engine.fake.live
        await engine.close()

    asyncio.run(asyncio.wait_for(work(), 60.0))


def test_the_engine_is_told_before_the_last_chunk_is_shown() -> None:
    """A slow reader of the last chunk does not keep the engine at work."""

    async def work() -> None:
        engine = echo_text_engine(script="STOP" + "x" * 5000, delay_s=0.0005)
        stream = engine.generate(ask(stop_strings=("STOP",)))
        while (await anext(stream)).finish is None:
            pass
        assert engine.fake.live["r1"].is_set()
        await stream.aclose()  # type: ignore[attr-defined]
        await engine.close()

    asyncio.run(work())


def test_stop_ids_and_special_strings() -> None:
    text, last, _ = run(ask(stop_token_ids=(ord("c"),)), script="abcd")
    assert (text, last.stop_reason) == ("ab", ord("c"))
    text, last, _ = run(ask(stop_token_ids=(ord("c"),), include_stop=True), script="abcd")
    assert text == "abc"
    text, last, _ = run(ask(stop_strings=("<|plugin|>",)), script="ab<|plugin|>cd")
    assert (text, last.stop_reason) == ("ab", "<|plugin|>")


def test_ignore_eos_length_and_nothing_to_draw() -> None:
    text, last, _ = run(ask(ignore_eos=True), script="a</s>b")
    assert text == "ab" and last.finish is Finish.LENGTH
    text, last, _ = run(ask(max_new_tokens=3), script="abcdef")
    assert (text, last.finish, last.usage.completion_tokens) == ("abc", Finish.LENGTH, 3)
    _, last, _ = run(ask(max_new_tokens=0), script="abc")
    assert last.finish is Finish.LENGTH and last.usage.completion_tokens == 0


def test_half_a_character_at_the_end_is_not_shown() -> None:
    text, last, chunks = run(ask(max_new_tokens=4), script="a狐b")
    assert (text, last.finish) == ("a狐", Finish.LENGTH)
    text, last, chunks = run(ask(max_new_tokens=3), script="a狐b")
    assert text == "a" and last.usage.completion_tokens == 3
    assert [t for c in chunks for t in c.token_ids] == list("a狐".encode())[:3]


def test_min_new_tokens_lets_a_stop_string_pass() -> None:
    text, last, _ = run(ask(stop_strings=("b",), min_new_tokens=2), script="abab")
    assert (text, last.stop_reason) == ("aba", "b")


def test_log_probabilities_of_answer_and_prompt() -> None:
    request = ask(tuple(b"abc"), logprobs=True, top_logprobs=2, prompt_logprobs=True)
    _, _, chunks = run(request, script="狐")
    prompt = chunks[0].prompt_logprobs
    assert prompt is not None and len(prompt) == 3 and prompt[0] is None
    assert [e.token for e in prompt[1:] if e] == ["b", "c"]
    entries = [entry for c in chunks for entry in c.logprobs]
    assert b"".join(e.token_bytes for e in entries) == "狐".encode()
    assert entries[0].token == "\ufffd" and entries[0].logprob == -0.5
    assert [t.logprob for t in entries[0].top] == [-1.0, -2.0]


def test_forms_of_prompts() -> None:
    _, _, chunks = run(ask("raw", chat=False))
    assert chunks[0].prompt_ids == (256, *b"raw")
    _, _, chunks = run(ask((5, 6, 7)))
    assert chunks[0].prompt_ids == (5, 6, 7)
    messages: tuple[Message, ...] = ({"role": "system", "content": "S"}, {"role": "user", "content": "U"})
    _, _, chunks = run(ask(messages, chat=True))
    assert chunks[0].prompt_ids is not None and chunks[0].prompt_ids[:2] == (256, 258)


REFUSALS = [
    (ask(tuple(range(40)), max_new_tokens=5), ("40", "5", "32")), (ask((1, 999)), ("999", "264")),
    (ask("x", chat=False, max_new_tokens=-1), ("-1",)), (ask("x", min_new_tokens=5, max_new_tokens=2), ("5", "2")),
    (ask((), chat=True), ("empty",)), (ask("x", tools=({"function": {"name": "f"}},), tool_choice="g"), ("'g'",)),
    (ask("a\ud800"), ("D800",)),
    (ask(grammar=GrammarSpec("json_object", ""), min_new_tokens=3), ("3", "grammar")),
    (ask(({"role": "user", "content": [{"type": "image_url"}]},), chat=True), ("image_url",)),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "numbers"), REFUSALS)
def test_refusals_name_the_numbers(request_: TextRequest, numbers: tuple[str, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        run(request_, max_model_tokens=32 if "40" in numbers else 4096)
    assert caught.value.status == 400 and all(number in str(caught.value) for number in numbers)


def test_a_full_context_has_its_own_code_and_room_is_cut() -> None:
    with pytest.raises(RequestError) as caught:
        run(ask(tuple([7] * 32)), max_model_tokens=32)
    assert caught.value.code == "context_length_exceeded"
    text, last, _ = run(ask(tuple([7] * 30), max_new_tokens=100), max_model_tokens=32, script="abcdef")
    assert (text, last.finish) == ("ab", Finish.LENGTH)


def test_grammars_are_refused_where_none_are_served() -> None:
    with pytest.raises(RequestError) as caught:
        run(ask(grammar=GrammarSpec("json_object", "")))
    assert caught.value.status == 501


async def _first(engine: EchoModel, request: TextRequest) -> AsyncIterator[Chunk]:
    stream = engine.generate(request)
    await anext(stream)
    return stream


def test_closing_early_aborts_and_ids_are_free_again() -> None:
    async def work() -> None:
        engine = echo_text_engine(script="x" * 5000, delay_s=0.0005)
        stream = await _first(engine, ask())
        with pytest.raises(RequestError, match="in use"):
            await collect(engine, ask())
        await stream.aclose()  # type: ignore[attr-defined]
        assert not engine.fake.live
        assert (await collect(engine, replace(ask(), max_new_tokens=2)))[-1].finish is Finish.LENGTH
        await engine.close()

    asyncio.run(work())


def test_abort_before_and_while() -> None:
    async def work() -> None:
        engine = echo_text_engine(script="x" * 5000, delay_s=0.0005)
        task = asyncio.ensure_future(collect(engine, ask()))
        await asyncio.sleep(0)
        engine.abort("r1")
        [only] = await task
        assert only.finish is Finish.ABORT and only.prompt_ids and not engine.fake.seen
        stream = await _first(engine, ask())
        engine.abort("r1")
        rest = [chunk async for chunk in stream]
        assert rest[-1].finish is Finish.ABORT
        engine.abort("nobody")
        assert not engine.fake.live
        await engine.close()

    asyncio.run(work())


def test_many_at_once_and_the_queues_limit() -> None:
    async def work() -> None:
        engine, gate = echo_text_engine(max_live=10), asyncio.Event()
        answer = engine.fake._answer

        async def held(request: Request) -> AsyncIterator[StepOutput]:
            await gate.wait()
            async for output in answer(request):
                yield output

        engine.fake._answer = held  # type: ignore[method-assign]
        tasks = [asyncio.ensure_future(collect(engine, ask(f"text {i}", id=f"r{i}"))) for i in range(20)]
        while sum(task.done() for task in tasks) < 10:
            await asyncio.sleep(0.001)
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        fine = [r for r in results if isinstance(r, list)]
        refused = [r for r in results if isinstance(r, RequestError)]
        assert len(fine) == 10 and len(refused) == 10 and all(e.status == 429 for e in refused)
        assert not engine.fake.live
        await engine.close()

    asyncio.run(work())


def test_sampling_and_wants_reach_the_engine() -> None:
    async def work() -> None:
        engine = echo_text_engine()
        sampling = Sampling(temperature=0.3, seed=4, logit_bias=((3, 2.0),))
        await collect(engine, ask(sampling=sampling, cache_salt="s", priority=2, timeout_s=9.0, want=Want.TOKEN))
        [seen] = engine.fake.seen
        assert seen.sampling == sampling and (seen.cache_salt, seen.priority, seen.timeout_s) == ("s", 2, 9.0)
        assert {1 + 256, END} <= set(seen.stop.token_ids)
        await engine.close()

    asyncio.run(work())


TOOL: Message = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = 'Wait.\n<|action_start|><|plugin|>\n{"name": "f", "parameters": {"a": "二"}}<|action_end|>'


@pytest.mark.parametrize("group", [1, 3, 50])
def test_tool_calls(group: int) -> None:
    text, last, chunks = run(ask(tools=(TOOL,)), script=CALL, group=group)
    [call] = [call for c in chunks for call in c.tool_calls]
    assert text == "Wait." and call.name == "f" and call.arguments == '{"a": "二"}'
    assert call.index == 0 and call.id.startswith("call_")
    assert last.finish is Finish.STOP


def test_without_tools_a_call_is_text() -> None:
    text, _, chunks = run(ask(skip_special_tokens=False), script=CALL)
    assert "<|action_start|>" in text and not text.endswith("<|action_end|>")
    assert not any(c.tool_calls for c in chunks)
    text, _, chunks = run(ask(tools=(TOOL,), tool_choice="none"), script="plain")
    assert text == "plain"


@pytest.mark.parametrize("wanted", [False, True])
def test_a_stop_token_has_a_log_probability_where_it_is_wanted(wanted: bool) -> None:
    text, last, chunks = run(ask(logprobs=True, stop_logprob=wanted), script="hi")
    entries = [entry for chunk in chunks for entry in chunk.logprobs]
    assert text == "hi" and last.finish is Finish.STOP and last.usage.completion_tokens == 3
    assert [entry.token for entry in entries][:2] == ["h", "i"]
    assert len(entries) == (3 if wanted else 2)
    assert sum(len(chunk.token_ids) for chunk in chunks) == 2
