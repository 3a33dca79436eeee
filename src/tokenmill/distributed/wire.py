"""What rank 0 sends the others: framed messages over a socket pair, plans as MessagePack. Never pickle.

A frame is a kind byte, a 4-byte little-endian length and the payload. A plan's arrays travel as (dtype, shape, bytes);
the receiver's are read-only views of the frame. Only dtypes of the seam (int32) are taken.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgspec
import numpy as np

from tokenmill.engine.contract import StepPlan

PLAN, MASKS, CLOSE, CONFIG, UP, FAILED, CONTROL = b"P", b"M", b"C", b"G", b"U", b"F", b"O"
# What every rank does between two steps, beside rank 0.
CONTROLS = ("sleep", "wake")
HEADER = struct.Struct("<cI")
INT32 = "<i4"


class Link:
    """One end of a connection between two ranks. Sends whole frames; `receive` is None when the other end is gone."""

    def __init__(self, connection: socket.socket):
        self._connection = connection

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        self._connection.sendall(HEADER.pack(kind, len(payload)) + payload)

    def receive(self, timeout_s: float | None = None) -> tuple[bytes, bytes] | None:
        """The next frame. Raises TimeoutError after `timeout_s`."""
        self._connection.settimeout(timeout_s)
        head = self._exactly(HEADER.size)
        if head is None:
            return None
        kind, size = HEADER.unpack(head)
        payload = self._exactly(size)
        return None if payload is None else (kind, payload)

    def _exactly(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            try:
                got = self._connection.recv(size - len(parts))
            except ConnectionError:
                return None
            if not got:
                return None
            parts += got
        return bytes(parts)

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.astype(INT32, copy=False).dtype.str, value.shape, value.astype(INT32, copy=False).tobytes()
    raise TypeError(f"a plan holds a {type(value).__name__}, which does not travel")


def _decode_array(kind: type, value: Any) -> Any:
    dtype, shape, data = value
    if dtype != INT32:
        raise ValueError(f"a plan's array is {dtype!r}; only {INT32!r} travels")
    return np.frombuffer(data, np.int32).reshape(shape)


_PLAN_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_PLAN_DECODER = msgspec.msgpack.Decoder(StepPlan, dec_hook=_decode_array)
_MASKS_DECODER = msgspec.msgpack.Decoder(dict[int, bytes])


def encode_plan(plan: StepPlan) -> bytes:
    return _PLAN_ENCODER.encode(plan)


def decode_plan(payload: bytes) -> StepPlan:
    return _PLAN_DECODER.decode(payload)


def encode_control(op: str, arguments: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode((op, arguments))


def decode_control(payload: bytes) -> tuple[str, dict[str, Any]]:
    return msgspec.msgpack.decode(payload, type=tuple[str, dict[str, Any]])


def encode_masks(masks: dict[int, bytes]) -> bytes:
    return msgspec.msgpack.encode(masks)


def decode_masks(payload: bytes) -> dict[int, bytes]:
    return _MASKS_DECODER.decode(payload)
