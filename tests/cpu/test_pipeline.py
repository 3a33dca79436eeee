"""`tokenmill.pipeline` on the echo engine: forms of prompts, streams, threads, errors, conversations, scores."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from typing import Any

import pytest
from tests.support.echo import EchoModel, echo_text_engine

import tokenmill
from tokenmill.api.compat import engine_config, text_request
from tokenmill.api.configs import (
    ChatTemplateConfig,
    GenerationConfig,
    PytorchEngineConfig,
    TurbomindEngineConfig,
)
from tokenmill.api.loop import LoopThread
from tokenmill.api.pipeline import Pipeline
from tokenmill.api.prompts import sort_prompts
from tokenmill.api.response import Response
from tokenmill.api.scoring import windows
from tokenmill.errors import ConfigError, EngineDeadError
from tokenmill.types import TextRequest

PUBLIC = [
    "APIClient", "ChatTemplateConfig", "GenerationConfig", "Pipeline", "PytorchEngineConfig", "QuantPolicy", "Response",
    "Session", "SpeculativeConfig", "Tokenizer", "TurbomindEngineConfig", "VisionConfig", "__version__", "client",
    "pipeline", "serve", "version_info",
]  # fmt: skip


class Opened(Pipeline):
    """A pipeline whose engine tests can look at."""

    model: EchoModel


def opened(**options: Any) -> Opened:
    model = echo_text_engine(**options)

    async def open_engine() -> EchoModel:
        return model

    pipe = Opened(open_engine)
    pipe.model = model
    return pipe


@pytest.fixture
def pipe() -> Iterator[Opened]:
    with opened() as pipe:
        yield pipe
        assert not pipe.model.fake.live


def test_public_names() -> None:
    assert sorted(tokenmill.__all__) == PUBLIC
    for name in tokenmill.__all__:
        assert getattr(tokenmill, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = tokenmill.nothing


def test_one_text(pipe: Opened) -> None:
    answer = pipe("你好")
    assert isinstance(answer, Response)
    assert (answer.text, answer.finish_reason, answer.index) == ("你好", "stop", 0)
    assert answer.generate_token_len == len("你好".encode()) + 1
    assert bytes(answer.token_ids).decode() == "你好"
    assert "finish_reason='stop'" in str(answer)


def test_forms_of_prompts(pipe: Opened) -> None:
    chat = [{"role": role, "content": text} for role, text in (("user", "one"), ("assistant", "x"), ("user", "two"))]
    assert [r.text for r in pipe(["a", "bc", "d"])] == ["a", "bc", "d"]
    assert [r.index for r in pipe(["a", "bc", "d"])] == [0, 1, 2]
    assert pipe(chat).text == "two"
    assert [r.text for r in pipe([chat, chat[:1]])] == ["two", "one"]
    assert pipe(list(b"plain")).text == "plain"
    assert [r.text for r in pipe([list(b"p"), "q", chat])] == ["p", "q", "two"]
    assert pipe([]) == []
    assert pipe("raw", do_preprocess=False).text == "raw"
    assert pipe.model.fake.seen[-1].prompt_ids == (256, *b"raw")


@pytest.mark.parametrize("wrong", [("text", "one.png", "two.png"), 5, [3.5], [[]], [None], {"role": "user"}])
def test_what_is_no_prompt(wrong: object) -> None:
    with pytest.raises(ConfigError):
        sort_prompts(wrong)


def test_a_config_for_each_prompt(pipe: Opened) -> None:
    configs = [GenerationConfig(max_new_tokens=1), GenerationConfig(max_new_tokens=3)]
    assert [r.text for r in pipe(["abcd", "abcd"], configs)] == ["a", "abc"]
    assert [r.finish_reason for r in pipe(["abcd", "abcd"], gen_config=configs)] == ["length", "length"]
    with pytest.raises(ConfigError, match="3 prompts and 2"):
        pipe(["a", "b", "c"], configs)


def test_first_generation_arguments(pipe: Opened) -> None:
    assert pipe("abcdef", request_output_len=2, top_k=3).text == "ab"
    sampling = pipe.model.fake.seen[-1].sampling
    assert (sampling.top_k, sampling.top_p, sampling.temperature) == (3, 0.8, 0.8)
    with pytest.raises(ConfigError, match="colour"):
        pipe("a", colour="red")


def test_stream_equals_the_whole(pipe: Opened) -> None:
    prompts = ["hello wörld", "二", "c" * 50]
    whole = [Response(index=i) for i in range(3)]
    for piece in pipe.stream_infer(prompts):
        whole[piece.index].extend(piece)
    assert [r.text for r in whole] == prompts
    assert [r.finish_reason for r in whole] == ["stop"] * 3
    expected = pipe(prompts)
    assert [r.token_ids for r in whole] == [r.token_ids for r in expected]
    assert [r.generate_token_len for r in whole] == [r.generate_token_len for r in expected]
    done = list(pipe.stream_infer(prompts, stream_response=False))
    assert sorted(r.text for r in done) == sorted(prompts)


def test_leaving_a_stream_aborts() -> None:
    with opened(script="x" * 3000, delay_s=0.05) as pipe:
        stream = pipe.stream_infer(["a", "b"])
        next(stream)
        stream.close()
        deadline = time.monotonic() + 60
        while pipe.model.fake.live and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not pipe.model.fake.live
        assert pipe("c", GenerationConfig(max_new_tokens=2)).text == "xx"


def test_async_callers(pipe: Opened) -> None:
    async def work() -> None:
        assert [r.text for r in await pipe.ainfer(["a", "b"])] == ["a", "b"]
        text = ""
        async for piece in pipe.astream_infer("streamed"):
            text += piece.text
        assert text == "streamed"
        both = await asyncio.gather(pipe.ainfer("x"), pipe.ainfer("y"))
        assert [r.text for r in both] == ["x", "y"]

    asyncio.run(work())


def test_many_threads_share_a_pipeline(pipe: Opened) -> None:
    texts: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: texts.update({i: pipe(f"text {i}").text})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {i: f"text {i}" for i in range(8)}


def test_a_refused_prompt_leaves_the_others_alone() -> None:
    with opened(max_model_tokens=60) as pipe:
        good, bad = pipe(["a", "b" * 100])
        assert (good.text, good.finish_reason) == ("a", "stop")
        assert (bad.text, bad.finish_reason, bad.error_code) == ("", "error", "context_length_exceeded")
        assert "60" in (bad.error_message or "") and "prompt has" in (bad.error_message or "")


def test_generation_config_reaches_the_engine(pipe: Opened) -> None:
    config = GenerationConfig(
        do_sample=True, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, random_seed=11,
        stop_words=["STOP"], bad_words=["z"], bad_token_ids=[5], stop_token_ids=[9], min_new_tokens=2, logprobs=3,
        max_new_tokens=40,
    )  # fmt: skip
    answer = pipe("go STOP on", config)
    assert (answer.text, answer.finish_reason) == ("go ", "stop")
    request = pipe.model.fake.seen[-1]
    s = request.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.repetition_penalty, s.seed) == (0.5, 0.9, 7, 0.1, 1.2, 11)
    assert s.bad_token_ids == (5, ord("z"))
    assert 9 in request.stop.token_ids and request.stop.min_new_tokens == 2 and request.stop.max_new_tokens == 40
    assert request.top_logprobs == 3
    assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids)
    assert answer.logprobs[0] == {ord("g"): -0.5, ord("h"): -1.0, ord("i"): -2.0, ord("j"): -3.0}


def test_do_sample_false_is_greedy(pipe: Opened) -> None:
    pipe("a", GenerationConfig(temperature=1.5, top_k=9, repetition_penalty=2.0))
    sampling = pipe.model.fake.seen[-1].sampling
    assert sampling.greedy and sampling.repetition_penalty == 1.0


def test_include_stop_and_ignore_eos(pipe: Opened) -> None:
    kept = pipe("a STOP b", GenerationConfig(stop_words=["STOP"], include_stop_str_in_output=True))
    assert kept.text == "a STOP"
    ignored = pipe("ab", GenerationConfig(ignore_eos=True, max_new_tokens=9, skip_special_tokens=False))
    assert ignored.text == "ab<|im_end|>" and ignored.finish_reason == "length"


def test_chat_remembers(pipe: Opened) -> None:
    session = pipe.chat("first")
    assert session.response is not None and session.response.text == "first"
    assert pipe.chat("second", session) is session
    assert session.history == [("first", "first"), ("second", "second")]
    text = pipe.model.codec.tokenizer.decode(pipe.model.fake.seen[-1].prompt_ids, skip_special_tokens=False)  # type: ignore[attr-defined]
    assert text.count("<|im_start|>user\nfirst<|im_end|>") == 1 and text.endswith("<|im_start|>assistant\n")
    pieces = list(pipe.chat("third", session, stream_response=True))
    assert "".join(p.text for p in pieces) == "third" and len(pieces) > 1
    assert session.history[-1] == ("third", "third")
    session.close()
    assert session.history == [] and session.response is None


def test_a_refused_question_is_not_remembered() -> None:
    """It would be part of every later turn, and have them refused too."""
    with opened(max_model_tokens=64) as pipe:
        session = pipe.chat("much too long " * 50)
        assert session.response is not None and session.response.finish_reason == "error" and session.history == []
        assert pipe.chat("short", session).response.text == "short"
        assert session.history == [("short", "short")]


def test_closing_ends_a_stream_that_another_thread_reads() -> None:
    loop, heard = LoopThread("test-loop"), []

    async def never() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    def read() -> None:
        with pytest.raises(EngineDeadError, match="closed"):
            for item in loop.iterate(never()):
                heard.append(item)
        heard.append("end")

    async def aread() -> None:
        with pytest.raises(EngineDeadError, match="closed"):
            async for item in loop.aiterate(never()):
                heard.append(item)
        heard.append("end")

    readers = [threading.Thread(target=read, daemon=True), threading.Thread(target=asyncio.run, args=(aread(),))]
    for reader in readers:
        reader.daemon = True
        reader.start()
    deadline = time.monotonic() + 60
    while heard.count(1) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    loop.close()
    for reader in readers:
        reader.join(60)
    assert heard.count("end") == 2


def test_get_ppl_is_mean_cross_entropy() -> None:
    # The echo engine gives every prompt token the log-probability -0.5.
    with opened(max_model_tokens=32) as pipe:
        assert pipe.get_ppl([[1, 2, 3], list(range(100))]) == [0.5, 0.5]
        assert pipe.get_ppl([7, 8]) == [0.5]
        with pytest.raises(ConfigError, match="token ids"):
            pipe.get_ppl("text")  # type: ignore[arg-type]


def test_windows_count_every_token_once() -> None:
    for size in range(2, 60):
        for most in range(2, 20):
            counted: list[int] = []
            for window in windows(size, most):
                assert 0 < window.stop - window.start <= most and window.start < window.count_from
                counted += range(window.count_from, window.stop)
            assert counted == list(range(1, size))


def test_closed(pipe: Opened) -> None:
    other = opened()
    other.close()
    other.close()
    assert other.model.fake.closed
    with pytest.raises(ConfigError, match="closed"):
        other("a")


def test_dropped_on_its_own_loop() -> None:
    """The last reference may go in a coroutine: the engine is closed, the thread ends, nobody waits for himself."""
    pipe = opened()
    thread = next(t for t in threading.enumerate() if t.name == "tokenmill-pipeline" and t is pipe._loop._thread)
    pipe._loop.loop.call_soon_threadsafe(pipe._close)
    thread.join(60)
    assert not thread.is_alive() and pipe.model.fake.closed


FORGETFUL = """
from tests.cpu.test_pipeline import opened
pipe = opened(script="x" * 5000, delay_s=0.001)
stream = pipe.stream_infer("a")
print(next(stream).text)
"""


def test_a_program_that_forgets_to_close_ends_in_silence() -> None:
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "x\n", "")


def test_an_engine_that_does_not_open_leaves_no_thread() -> None:
    before = set(threading.enumerate())

    async def broken() -> EchoModel:
        raise ConfigError("no such model")

    with pytest.raises(ConfigError, match="no such model"):
        Pipeline(broken)
    # Threads of tests before this one may end meanwhile.
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 2.1), ("temperature", float("nan")), ("top_p", -0.1), ("top_p", 1.1), ("top_k", -1), ("n", 0),
     ("min_p", 2.0), ("max_new_tokens", -1), ("logprobs", 50), ("output_logits", "some")],
)  # fmt: skip
def test_generation_config_checks(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        GenerationConfig(**{field: value})


@pytest.mark.parametrize("field", ["logits_processors", "migration_request", "with_cache"])
def test_what_is_not_served_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        text_request(TextRequest("x", "p"), GenerationConfig(**{field: [print]}), {})


def test_response_format() -> None:
    def kind(response_format: dict[str, Any]) -> tuple[str, str] | None:
        request = text_request(TextRequest("x", "p"), GenerationConfig(response_format=response_format), {})
        return None if request.grammar is None else (request.grammar.kind, request.grammar.text)

    assert kind({"type": "text"}) is None
    assert kind({"type": "json_object"}) == ("json_object", "")
    assert kind({"type": "regex_schema", "regex_schema": "a+"}) == ("regex", "a+")
    assert kind({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}) == (
        "json_schema", '{"type": "null"}',
    )  # fmt: skip


def test_engine_config() -> None:
    turbomind = TurbomindEngineConfig(
        dtype="float32", session_len=4096, max_batch_size=8, cache_max_entry_count=0.5, quant_policy=8, tp=2,
        cache_block_seq_len=128, rope_scaling_factor=2.0, use_logn_attn=True, devices=[0, 1], async_=0,
    )  # fmt: skip
    config = engine_config("some/where", turbomind)
    assert config.model.path == "some/where" and config.model.dtype == "float32"
    assert config.model.max_model_tokens == 4096 and config.scheduler.max_rows == 8
    assert (config.cache.kv, config.cache.memory_frac, config.cache.block_tokens) == ("int8", 0.5, 128)
    assert (config.parallel.tp, config.parallel.devices, config.scheduler.overlap) == (2, (0, 1), False)
    assert config.model.rope_scaling_factor == 2.0 and config.model.use_logn_attn is True
    wish = PytorchEngineConfig(eager_mode=True, device_type="cpu", num_gpu_blocks=7, quant_policy=4)
    other = engine_config("m", wish)
    assert other.kernels.eager and other.kernels.device == "cpu"
    assert other.cache.num_blocks == 7 and other.cache.kv == "int4"
    assert other.cache.block_tokens is None and other.model.use_logn_attn is None


@pytest.mark.parametrize(
    "wish", [{"dp": 2}, {"quant_policy": 42}, {"quant_policy": 17}, {"empty_init": True}, {"dtype": "int3"}]
)
def test_engine_config_refuses(wish: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wish))}|{next(iter(wish.values()))}"):
        engine_config("m", TurbomindEngineConfig(**wish))


def test_defaults_are_lmdeploys() -> None:
    g = GenerationConfig()
    assert (g.max_new_tokens, g.do_sample, g.top_p, g.top_k, g.temperature) == (512, False, 1.0, 50, 0.8)
    t, p = TurbomindEngineConfig(), PytorchEngineConfig()
    assert (t.cache_max_entry_count, t.cache_block_seq_len, t.quant_policy) == (0.8, 64, 0)
    assert t.max_prefill_token_num == p.max_prefill_token_num == 8192
    assert (p.block_size, p.prefill_interval, p.device_type, p.dllm_confidence_threshold) == (64, 16, "cuda", 0.85)
    names = {f.name for f in fields(Response)}
    assert {"text", "generate_token_len", "input_token_len", "finish_reason", "token_ids", "logprobs", "index"} <= names


def test_chat_template_config_round_trip(tmp_path: Any) -> None:
    config = ChatTemplateConfig("vicuna", meta_instruction="Be kind.", stop_words=["</s>"])
    path = tmp_path / "t.json"
    config.to_json(str(path))
    assert ChatTemplateConfig.from_json(str(path)) == config == ChatTemplateConfig.from_json(config.to_json())
    with pytest.raises(ConfigError):
        ChatTemplateConfig.from_json('{"no_such_key": 1}')
