"""What passes between a client and an engine in its own process: msgpack records in frames, one frame per step.

A frame is a little-endian uint32 (bytes that follow) and one record. Records are typed on both sides; what does not fit
its type is refused (`WireError`) and nothing is ever unpickled or evaluated. Arrays travel as their bytes; those among
a step's extras as msgpack extensions: code = place in `DTYPES`, data = number of axes, axes (uint32), values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokenmill import errors
from tokenmill.config import EngineConfig
from tokenmill.engine.contract import Stats, StepOutputs
from tokenmill.types import Finish, Request

LENGTH = struct.Struct("<I")
MOST_FRAME_BYTES = 1 << 30
DTYPES = tuple(np.dtype(name) for name in ("<f4", "<i4", "<i8", "|i1", "<f8"))
RAISED_AGAIN = (errors.ConfigError, errors.FormatError, errors.CapacityError, errors.EngineDeadError)
ERROR = list(Finish).index(Finish.ERROR)
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class WireError(Exception):
    """Bytes that are no record of ours: the two sides do not run the same program."""


# ---- to the engine


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """The first record. `factory` and `grammars` are "module:function" (grammars may be empty)."""

    factory: str
    config: EngineConfig
    grammars: str
    log_level: str


class Submit(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    handle: int
    request: Request


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    handle: int


class AskStats(msgspec.Struct, frozen=True, array_like=True, tag="ask_stats"):
    number: int


class Control(msgspec.Struct, frozen=True, array_like=True, tag="control"):
    """`op`: sleep (level) or wake (tags)."""

    number: int
    op: str
    level: int = 1
    tags: tuple[str, ...] = ()


class Close(msgspec.Struct, frozen=True, array_like=True, tag="close"):
    pass


# ---- from the engine


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """`about`: what the runner says of itself, plain values."""

    about: dict[str, Any]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The engine could not start: the error's class (one of errors.py, else empty) and its line for the user."""

    kind: str
    text: str


class Outputs(msgspec.Struct, frozen=True, array_like=True, tag="outputs"):
    """StepOutputs; its arrays as bytes of the dtypes named in the contract."""

    handles: bytes
    counts: bytes
    tokens: bytes
    finishes: bytes
    extras: dict[int, dict[str, Any]]


class TellStats(msgspec.Struct, frozen=True, array_like=True, tag="tell_stats"):
    number: int
    stats: Stats


class Obeyed(msgspec.Struct, frozen=True, array_like=True, tag="obeyed"):
    """The end of a `Control`; `failure` where it could not be done."""

    number: int
    failure: Failed | None


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """The loop is over; `failure` is empty where it was closed."""

    failure: str


ToEngine = Start | Submit | Abort | AskStats | Control | Close
FromEngine = Ready | Failed | Outputs | TellStats | Obeyed | Ended


def _array_out(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"a {type(value).__name__} does not travel")
    if value.dtype not in DTYPES:
        raise NotImplementedError(f"an array of {value.dtype} does not travel")
    head = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
    return msgspec.msgpack.Ext(DTYPES.index(value.dtype), head + value.tobytes())


def _array_in(code: int, data: memoryview) -> NDArray[np.generic]:
    if not 0 <= code < len(DTYPES):
        raise WireError(f"array type {code} is unknown")
    try:
        axes = data[0]
        shape = struct.unpack_from(f"<{axes}I", data, 1)
        # A copy, so that an array does not keep its whole frame alive.
        return np.frombuffer(data, DTYPES[code], offset=1 + 4 * axes).reshape(shape).copy()
    except (IndexError, ValueError, struct.error) as error:
        raise WireError(f"{len(data)} bytes are no array: {error}") from error


_encoder = msgspec.msgpack.Encoder(enc_hook=_array_out)
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine, ext_hook=_array_in)


def pack(record: ToEngine | FromEngine) -> bytes:
    """A whole frame."""
    try:
        body = _encoder.encode(record)
    except (OverflowError, TypeError, ValueError) as error:
        raise WireError(f"a record that cannot be written: {error}") from error
    if len(body) > MOST_FRAME_BYTES:
        raise WireError(f"a record of {len(body)} bytes; the limit is {MOST_FRAME_BYTES}")
    return LENGTH.pack(len(body)) + body


def body_length(head: bytes) -> int:
    """How many bytes follow a frame's head."""
    (length,) = LENGTH.unpack(head)
    if length > MOST_FRAME_BYTES:
        raise WireError(f"a frame of {length} bytes; the limit is {MOST_FRAME_BYTES}")
    return int(length)


def read_to_engine(body: bytes) -> ToEngine:
    try:
        record: ToEngine = _to_engine.decode(body)
    except UNREADABLE as error:
        raise WireError(f"not a record for the engine: {error}") from error
    return record


def read_from_engine(body: bytes) -> FromEngine:
    try:
        record: FromEngine = _from_engine.decode(body)
    except UNREADABLE as error:
        raise WireError(f"not a record of the engine: {error}") from error
    return record


def outputs_record(step: StepOutputs) -> Outputs:
    return Outputs(
        step.handles.tobytes(), step.counts.tobytes(), step.tokens.tobytes(), step.finishes.tobytes(), step.extras
    )


def by_row(step: StepOutputs) -> Iterator[StepOutputs]:
    """The same message, a row at a time: for arrays that do not fit into one frame together."""
    ends = np.cumsum(step.counts).tolist()
    for place, (handle, count) in enumerate(zip(step.handles.tolist(), step.counts.tolist(), strict=True)):
        row = slice(place, place + 1)
        tokens = step.tokens[ends[place] - count : ends[place]]
        extras = {handle: step.extras[handle]} if handle in step.extras else {}
        yield StepOutputs(step.handles[row], step.counts[row], tokens, step.finishes[row], extras)


def too_large(row: StepOutputs) -> StepOutputs:
    """What a request hears instead of a row whose own arrays fit into no frame."""
    error = f"what this request wants of its prompt takes more than {MOST_FRAME_BYTES} bytes: shorten the prompt"
    none, finishes = np.zeros(0, np.int32), np.asarray([ERROR], np.int8)
    return StepOutputs(row.handles, np.zeros(1, np.int32), none, finishes, {int(row.handles[0]): {"error": error}})


def step_outputs(record: Outputs) -> StepOutputs:
    return StepOutputs(
        np.frombuffer(record.handles, np.int64),
        np.frombuffer(record.counts, np.int32),
        np.frombuffer(record.tokens, np.int32),
        np.frombuffer(record.finishes, np.int8),
        record.extras,
    )


def failed_record(error: BaseException) -> Failed:
    if isinstance(error, RAISED_AGAIN):
        return Failed(type(error).__name__, str(error))
    return Failed("", f"{type(error).__name__}: {error}")


def failure(record: Failed) -> errors.TokenmillError:
    """The error that the child could not start by, as the parent raises it."""
    for kind in RAISED_AGAIN:
        if kind.__name__ == record.kind:
            return kind(record.text)
    return errors.EngineDeadError(f"the engine could not start: {record.text}")
