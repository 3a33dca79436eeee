"""Plans and masks survive the wire; frames survive any cut of the stream; what does not belong is refused."""

from __future__ import annotations

import socket
import threading
from dataclasses import fields

import msgspec
import numpy as np
import pytest
from tests.support.drive import chunk, init, ints

from tokenmill.distributed import wire
from tokenmill.engine.contract import Embeds, Encode, Row, StepPlan
from tokenmill.types import Sampling, Want


def plan() -> StepPlan:
    sampling = Sampling(0.5, 3, 0.9, 0.01, 1.5, 0.25, 0.125, ((5, -np.inf), (7, 2.5)), (9,), seed=2**64 - 1)
    return StepPlan(
        41,
        ints([3, 1]),
        [
            chunk(0, [1, 2, 3], 7, Want.TOKEN | Want.PROMPT_LOGPROBS, [2, 3, -1]),
            Row(2, 1, None, -1, Want.TOKEN, embeds=(Embeds(0, "new", 3, 1),), turns=ints([[9], [7], [8]])),
        ],
        [init(0, [4, 5], sampling, seed=2**64 - 1, rope_base=1e6, stop_ids=(2, 3), min_tokens=5)],
        new_blocks=ints([[0, 0, 0, 12]]), released_slots=ints([5]), block_copies=ints([[0, 1, 2]]), masked=ints([3]),
        dropped_media=["old"], encode=[Encode("new", "/a file", 512, (16, 32))],
    )


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return type(a) is type(b) and a == b


def test_a_plan_comes_back_as_it_was():
    assert same(wire.decode_plan(wire.encode_plan(plan())), plan())
    assert same(wire.decode_plan(wire.encode_plan(StepPlan(0))), StepPlan(0))
    assert not same(wire.decode_plan(wire.encode_plan(plan())), StepPlan(41))


def test_masks_come_back():
    assert wire.decode_masks(wire.encode_masks({3: b"\x00\xff", 7: b""})) == {3: b"\x00\xff", 7: b""}


def test_arrays_of_other_types_and_objects_are_refused():
    with pytest.raises(TypeError, match="a plan holds a object"):
        wire.encode_plan(StepPlan(0, encode=object()))  # type: ignore[arg-type]
    raw = msgspec.msgpack.decode(wire.encode_plan(StepPlan(0)))
    raw["decode_slots"] = ("<f8", (1,), b"\0" * 8)
    with pytest.raises(msgspec.ValidationError, match="only '<i4' travels"):
        wire.decode_plan(msgspec.msgpack.encode(raw))


def test_frames_survive_a_stream_cut_anywhere():
    ours, theirs = socket.socketpair()
    sender, receiver = wire.Link(ours), wire.Link(theirs)
    frames = [(wire.PLAN, bytes(300_000)), (wire.MASKS, b""), (wire.CLOSE, b"x")]

    def send() -> None:
        for kind, payload in frames:
            sender.send(kind, payload)
        sender.close()

    thread = threading.Thread(target=send)
    thread.start()
    assert [receiver.receive(5) for _ in frames] == frames
    assert receiver.receive(5) is None
    thread.join()


def test_waiting_ends():
    ours, theirs = socket.socketpair()
    with pytest.raises(TimeoutError):
        wire.Link(ours).receive(0.01)
    theirs.close()
