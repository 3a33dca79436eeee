"""What a safetensors file says it holds, believed only after its numbers fit the file's length.

The layout: 8 bytes little endian header length, that many bytes of JSON, then the data; offsets count from the data's
start (https://github.com/huggingface/safetensors, "Format"). Nothing is allocated from a number that was not checked.
Everything wrong is a FormatError that names the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenmill.errors import FormatError
from tokenmill.log import safe

MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 8

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor on disk. `offset` is its first byte, counted from the file's start (0 in a pickled shard)."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Every tensor of the file by name, and its metadata. Offsets cover the data exactly, without overlap or holes."""
    raw, data_start, data_bytes = _header_bytes(path)
    entries = _parse(path, raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path.name}: __metadata__ must map words to words")
    infos, spans = {}, []
    for name, entry in entries.items():
        info, span = _entry(path, name, entry, data_start, data_bytes)
        infos[name] = info
        spans.append(span)
    _check_cover(path, sorted(spans), data_bytes)
    return infos, metadata


def _header_bytes(path: Path) -> tuple[bytes, int, int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise FormatError(f"{path.name}: {size} bytes, too short for a header of {length} bytes: truncated")
        if length > MAX_HEADER_BYTES:
            raise FormatError(f"{path.name}: a header of {length} bytes, above the limit of {MAX_HEADER_BYTES}")
        raw = file.read(length)
    if len(raw) < length:
        raise FormatError(f"{path.name}: ended inside its header: truncated download")
    return raw, 8 + length, size - 8 - length


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path.name}: its header is not valid JSON ({safe(str(error), 120)})") from error
    if not isinstance(entries, dict):
        raise FormatError(f"{path.name}: its header is not a table of tensors")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _entry(path: Path, name: str, entry: Any, data_start: int, data_bytes: int) -> tuple[TensorInfo, tuple[int, int]]:
    where = f"{path.name}: tensor {safe(name, 200)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise FormatError(f"{where} lacks dtype, shape or data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise FormatError(f"{where} has dtype {safe(entry['dtype'], 40)}; known are {', '.join(DTYPES)}")
    shape, offsets = _counts(entry["shape"]), _counts(entry["data_offsets"])
    if shape is None or len(shape) > MAX_AXES:
        raise FormatError(f"{where} has no legal shape: {safe(entry['shape'], 80)}")
    if offsets is None or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
        raise FormatError(
            f"{where} lies at {safe(entry['data_offsets'], 60)}, outside the {data_bytes} bytes of data: truncated"
        )
    info = TensorInfo(path, dtype, shape, data_start + offsets[0])
    if info.nbytes != offsets[1] - offsets[0]:
        raise FormatError(f"{where}: shape {shape} needs {info.nbytes} bytes, the file gives {offsets[1] - offsets[0]}")
    return info, (offsets[0], offsets[1])


def _counts(value: Any) -> tuple[int, ...] | None:
    """A list of whole numbers from 0 on, as a tuple; None for anything else (True is not a number)."""
    if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
        return None
    return tuple(value)


def _check_cover(path: Path, spans: list[tuple[int, int]], data_bytes: int) -> None:
    end = 0
    for begin, stop in spans:
        if begin != end:
            raise FormatError(f"{path.name}: tensors overlap or leave a hole at byte {min(begin, end)} of the data")
        end = stop
    if end != data_bytes:
        raise FormatError(f"{path.name}: {data_bytes} bytes of data, but its tensors end at {end}")
