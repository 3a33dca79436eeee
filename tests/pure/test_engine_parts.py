"""Blocks, keys, budget, wire records and EchoEngine: each against a closed form, a plain model or its contract."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from dataclasses import replace
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.config import CacheConfig, EngineConfig, SchedulerConfig
from tokenmill.engine import wire
from tokenmill.engine.blocks import BlockPool, extend_keys, root_key
from tokenmill.engine.budget import Budget
from tokenmill.engine.child import Child
from tokenmill.engine.contract import RopeBase, Stats, StepCost, StepOutputs
from tokenmill.engine.echo import EchoEngine, EchoOptions
from tokenmill.engine.stream import Stream
from tokenmill.errors import CapacityError, EngineDeadError, RequestError
from tokenmill.types import Finish, GrammarSpec, MediaRef, Request, Sampling, StepOutput, Stop, Thinking, Want

# ---- blocks


class PlainPool:
    """The same three states with sets and a dict, nothing shared with the real one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.refs: dict[int, int] = {}
        self.index: OrderedDict[bytes, int] = OrderedDict()
        self.idle: list[int] = []

    def free(self) -> int:
        return self.count - len(self.refs)

    def gone(self, block: int) -> None:
        """A cached block was given out anew."""
        if block in self.idle:
            self.idle.remove(block)
            self.index = OrderedDict((k, b) for k, b in self.index.items() if b != block)


@pytest.mark.parametrize("seed", range(40))
def test_pool_agrees_with_a_plain_model(seed: int) -> None:
    """Counts, states and the order of eviction: oldest first, and of one release the last block first."""
    rng = Random(seed)
    pool, plain = BlockPool(12), PlainPool(12)
    held: list[list[int]] = []
    for step in range(120):
        match rng.choice(["allocate", "release", "publish", "hit"]):
            case "allocate" if plain.free():
                count = rng.randint(1, plain.free())
                never_used = 12 - len(plain.refs) - len(plain.idle)
                evicted = plain.idle[: max(count - never_used, 0)]
                blocks = pool.allocate(count).tolist()
                assert not set(blocks) & set(plain.refs), "a block that somebody holds"
                assert set(plain.idle) & set(blocks) <= set(evicted), "evicted though others were free or older"
                for block in evicted:
                    plain.gone(block)
                plain.refs.update(dict.fromkeys(blocks, 1))
                held.append(blocks)
            case "release" if held:
                blocks = held.pop(rng.randrange(len(held)))
                pool.release(np.asarray(blocks, np.int32))
                for block in reversed(blocks):
                    plain.refs[block] -= 1
                    if not plain.refs[block]:
                        del plain.refs[block]
                        if block in plain.index.values():
                            plain.idle.append(block)
            case "publish" if held:
                block, key = rng.choice(rng.choice(held)), bytes([rng.randrange(30)])
                if key not in plain.index and block not in plain.index.values():
                    plain.index[key] = block
                pool.publish(block, key)
            case "hit" if plain.index:
                key = rng.choice(list(plain.index))
                block = pool.find(key)
                assert block == plain.index[key]
                assert pool.idle_among([block]) == (block in plain.idle)
                pool.take([block])
                plain.refs[block] = plain.refs.get(block, 0) + 1
                if block in plain.idle:
                    plain.idle.remove(block)
                held.append([block])
        assert pool.num_free == plain.free(), step
        assert {b: int(n) for b, n in enumerate(pool.refs) if n} == plain.refs
        assert list(pool._cached) == plain.idle and dict(pool._index) == dict(plain.index)


def keys(tokens: list[int], size: int = 4, root: bytes = b"", media: tuple[MediaRef, ...] = ()) -> list[bytes]:
    found: list[bytes] = []
    extend_keys(found, root, np.asarray(tokens, np.int32), size, media)
    return found


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30), st.lists(st.integers(0, 99), max_size=30), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_key_stands_for_a_whole_prefix(one: list[int], other: list[int], data: st.DataObject) -> None:
    common = data.draw(st.integers(0, len(one)))
    other = one[:common] + other
    mine, theirs = keys(one), keys(other)
    assert len(mine) == len(one) // 4
    for index, (a, b) in enumerate(zip(mine, theirs, strict=False)):
        assert (a == b) == (one[: 4 * index + 4] == other[: 4 * index + 4])


def test_keys_grow_as_tokens_do() -> None:
    found: list[bytes] = []
    tokens = np.arange(23, dtype=np.int32)
    for count in (3, 4, 9, 23):
        extend_keys(found, b"root", tokens[:count], 4, ())
    assert found == keys(list(range(23)), root=b"root")


def test_everything_a_block_depends_on_is_in_its_key() -> None:
    """Images count where they lie and by what they are; salts cannot run into one another."""
    tokens = list(range(16))
    image = MediaRef("a" * 64, 5, 2)
    variants = [
        keys(tokens), keys(tokens, root=b"x"), keys(tokens, media=(image,)),
        keys(tokens, media=(replace(image, digest="b" * 64),)), keys(tokens, media=(replace(image, offset=6),)),
    ]
    assert len({v[1] for v in variants}) == 5, "the block that the image lies in, and whatever comes after it"
    assert variants[2][0] == variants[0][0], "a block before the image does not know of it"
    salts = (("", 1.0, "ab", "c"), ("", 1.0, "a", "bc"), ("", 2.0, "ab", "c"), ("a", 1.0))
    assert len({root_key(*salt) for salt in salts}) == 4


# ---- the rope base, as the scheduler hands it out


@pytest.mark.parametrize(("prompt", "alpha"), [(2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7), (8193, 15)])
def test_qwen_base_moves_in_powers_of_two(prompt: int, alpha: int) -> None:
    base = RopeBase("qwen", 10000.0, 1.0, 2048, 128).for_prompt(prompt)
    assert base == pytest.approx(10000.0 * alpha ** (128 / 126), rel=1e-12)


# ---- the budget


@pytest.mark.parametrize("context", [0, 100, 5000])
@pytest.mark.parametrize("target_us", [200.0, 1000.0, 40_000.0])
def test_a_chunk_is_the_longest_that_stays_under_the_target(target_us: float, context: int) -> None:
    cost = StepCost(100.0, 5.0, 2.0, 30.0)
    budget = Budget(10_000, 1)
    budget.limit_time(target_us, cost, rows=3, context_tokens=600)

    def step_us(tokens: int) -> float:
        steady = 100.0 + 3 * (5.0 + 2.0) + 600 / 1000 * 30.0
        return steady + 5.0 + sum(2.0 + (context + i + 0.5) / 1000 * 30.0 for i in range(tokens))

    count = budget.chunk(10_000, context)
    assert count == 1 or step_us(count) <= target_us + 1e-6
    assert step_us(count + 1) > target_us
    budget.spend(count, context)
    assert budget.tokens == 10_000 - count and budget.chunk(10, 10_000) == 0


def test_without_a_target_only_tokens_count() -> None:
    budget = Budget(10, 4)
    assert budget.chunk(30, 0) == 10
    budget.spend(7, 0)
    assert budget.chunk(30, 7) == 3


# ---- the wire


def test_records_come_back_as_they_went() -> None:
    config = EngineConfig(cache=CacheConfig(kv="int8", num_blocks=7), scheduler=SchedulerConfig(max_queue=3))
    asked = Request(
        "r", (1, 2, 3), Sampling(0.5, logit_bias=((1, -2.0),), seed=9), Stop(5, 1, (2,)), Want.TOKEN | Want.LOGPROBS, 3,
        GrammarSpec("regex", "a+"), (MediaRef("d", 0, 2),), "lora", "salt", -1, 2.5,
        Thinking(7, 6, False, 5, True),
    )
    for record in (wire.Start("a:b", config, "", "INFO"), wire.Submit(1 << 40, asked), wire.Abort(3), wire.Close(),
                   wire.Control(1, "wake", 2, ("weights",))):  # fmt: skip
        frame = wire.pack(record)
        assert wire.body_length(frame[:4]) == len(frame) - 4
        assert wire.read_to_engine(frame[4:]) == record
    sleeping = wire.Obeyed(3, wire.Failed("CapacityError", "no room"))
    for answer in (wire.Ready({"a": [1, 2.5, "x"]}), wire.TellStats(4, Stats(running=2, asleep=("weights",))), sleeping,
                   wire.Obeyed(3, None), wire.Ended("why")):  # fmt: skip
        assert wire.read_from_engine(wire.pack(answer)[4:]) == answer


def test_a_step_crosses_with_its_arrays() -> None:
    extras = {5: {"logits": np.arange(6, dtype=np.float32).reshape(2, 3), "cached_tokens": np.int64(4), "error": "x"}}
    step = StepOutputs(
        np.asarray([5, 6], np.int64), np.asarray([2, 0], np.int32), np.asarray([8, 9], np.int32),
        np.asarray([-1, 3], np.int8), extras,
    )
    record = wire.read_from_engine(wire.pack(wire.outputs_record(step))[4:])
    assert isinstance(record, wire.Outputs)
    back = wire.step_outputs(record)
    for name in ("handles", "counts", "tokens", "finishes"):
        assert np.array_equal(getattr(back, name), getattr(step, name)), name
    logits = back.extras[5]["logits"]
    assert np.array_equal(logits, extras[5]["logits"]) and logits.dtype == np.float32
    assert back.extras[5]["cached_tokens"] == 4 and back.extras[5]["error"] == "x"


@given(st.binary(max_size=80))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_whatever_bytes_come_they_are_refused_or_a_record(body: bytes) -> None:
    for read in (wire.read_to_engine, wire.read_from_engine):
        try:
            record = read(body)
        except wire.WireError:
            continue
        assert isinstance(record, msgspec.Struct)


@pytest.mark.parametrize("broken", [
    msgspec.msgpack.encode(["submit", 1, {"id": 5, "prompt_ids": [1]}]),
    msgspec.msgpack.encode(["submit", 1, {"id": "a", "prompt_ids": ["x"]}]),
    msgspec.msgpack.encode(["start", "a:b", {"cache": {"num_blocks": "many"}}, "", ""]),
    msgspec.msgpack.encode(["unknown"]), b"\x91" * 100_000, b"\x92\xa5ended\xa1\xff",
    msgspec.msgpack.encode(["outputs", b"", b"", b"", b"", {1: {"x": msgspec.msgpack.Ext(99, b"\0")}}]),
    msgspec.msgpack.encode(["outputs", b"", b"", b"", b"", {1: {"x": msgspec.msgpack.Ext(0, b"\1\\9\0\0\0")}}]),
    msgspec.msgpack.encode(["outputs", b"", b"", b"", b"", {1: {"x": msgspec.msgpack.Ext(0, b"")}}]),
], ids=range(9))  # fmt: skip
def test_records_of_wrong_types_are_refused(broken: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.read_to_engine(broken)
    with pytest.raises(wire.WireError):
        wire.read_from_engine(broken)


def test_frames_are_bounded_and_only_known_arrays_travel() -> None:
    with pytest.raises(wire.WireError, match="limit"):
        wire.body_length(b"\xff\xff\xff\xff")
    none = np.zeros(0, np.int32)
    odd = StepOutputs(none.astype(np.int64), none, none, none.astype(np.int8), {1: {"x": np.asarray([object()])}})
    with pytest.raises((NotImplementedError, wire.WireError), match="object"):
        wire.pack(wire.outputs_record(odd))


def test_arrays_that_fit_into_no_frame_end_their_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of a whole prompt may be larger than a frame: the loop, which publishes, goes on."""
    monkeypatch.setattr(wire, "MOST_FRAME_BYTES", 1000)
    ours, theirs = socket.socketpair()
    child = Child(theirs)
    extras = {7: {"logits": np.ones((2, 100), np.float32)}, 8: {"logits": np.ones((3, 100), np.float32)}}
    step = StepOutputs(np.asarray([7, 8, 9]), np.asarray([2, 1, 0], np.int32), np.asarray([4, 5, 6], np.int32),
                       np.asarray([-1, -1, 1], np.int8), extras)  # fmt: skip
    child._publish(step)
    with ours, theirs, ours.makefile("rb") as stream:
        heard = []
        for _ in range(3):
            record = wire.read_from_engine(stream.read(wire.body_length(stream.read(4))))
            assert isinstance(record, wire.Outputs)
            heard.append(wire.step_outputs(record))
    assert [(row.handles.tolist(), row.tokens.tolist()) for row in heard] == [([7], [4, 5]), ([8], []), ([9], [])]
    assert [list(Finish)[row.finishes[0]] if row.finishes[0] >= 0 else None for row in heard] == [
        None, Finish.ERROR, list(Finish)[1]
    ]
    assert heard[0].extras[7]["logits"].shape == (2, 100) and "more than 1000 bytes" in heard[1].extras[8]["error"]


def test_nothing_is_heard_after_the_end() -> None:
    stream = Stream(Request("a", (1,)), 3)
    stream.put([], Finish.ERROR, {"error": "too large"})
    stream.put([], Finish.ABORT, None)
    assert (stream.take().finish, stream.finish) == (Finish.ERROR, Finish.ERROR)


def test_start_errors_cross_by_class() -> None:
    again = wire.failure(wire.failed_record(CapacityError("needs 3 GiB")))
    assert type(again) is CapacityError and str(again) == "needs 3 GiB"
    assert type(wire.failure(wire.failed_record(ValueError("x")))) is EngineDeadError


# ---- EchoEngine keeps the engine's contract


async def collect(engine: EchoEngine, request: Request) -> list[StepOutput]:
    return [output async for output in engine.generate(request)]


async def test_echo_answers_with_the_prompt() -> None:
    outputs = await collect(EchoEngine(), Request("a", (5, 6, 7), want=Want.TOKEN | Want.LOGPROBS))
    assert [o.token_ids for o in outputs] == [(5,), (6,), (7,)]
    assert [o.finish for o in outputs] == [None, None, Finish.STOP]
    assert outputs[-1].usage.completion_tokens == 3 and outputs[0].logprobs[0].token_id == 5


@pytest.mark.parametrize(
    ("stop", "tokens", "finish"),
    [
        (Stop(2), (5, 6), Finish.LENGTH), (Stop(9, 0, (6,)), (5, 6), Finish.STOP),
        (Stop(9, 2, (6,)), (5, 6, 7), Finish.STOP), (Stop(0), (), Finish.LENGTH),
    ],
)
async def test_echo_applies_stop_rules(stop: Stop, tokens: tuple[int, ...], finish: Finish) -> None:
    whole = await EchoEngine().score(Request("a", (5, 6, 7), stop=stop))
    assert (whole.token_ids, whole.finish) == (tokens, finish)
    scored = await EchoEngine().score(Request("a", (5, 6, 7), stop=stop, want=Want.TOKEN | Want.LOGPROBS))
    assert tuple(one.token_id for one in scored.logprobs) == tokens


async def test_echo_refuses_aborts_and_times_out() -> None:
    engine = EchoEngine(EchoOptions(tokens_per_s=20, max_rows=2, max_queue=1, max_model_tokens=100))
    long = tuple(range(60))
    tasks = [asyncio.create_task(collect(engine, Request(f"r{i}", long))) for i in range(3)]
    await asyncio.sleep(0.05)
    for bad, status in ((Request("x", ()), 400), (Request("x", tuple(range(100))), 400), (Request("x", long), 429)):
        with pytest.raises(RequestError) as caught:
            await collect(engine, bad)
        assert caught.value.status == status
    assert (await engine.stats()).running == 2 and (await engine.stats()).waiting == 1
    engine.abort("r0")
    engine.abort("r2")
    for task in (tasks[0], tasks[2]):
        assert (await task)[-1].finish is Finish.ABORT
    late = await collect(engine, Request("late", long, timeout_s=0.1))
    assert late[-1].finish is Finish.TIMEOUT and late[-1].usage.completion_tokens < 20
    await engine.close()
    assert (await tasks[1])[-1].finish is Finish.ABORT
    stats = await engine.stats()
    assert stats.running == stats.waiting == 0 and not stats.alive
    with pytest.raises(EngineDeadError):
        await collect(engine, Request("y", long))
