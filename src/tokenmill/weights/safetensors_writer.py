"""Writing one safetensors file: the inverse of `safetensors_header`, hashed on the way and on disk when it returns.

Tensors lie in the order of their element size, widest first, so that every one of them is aligned for its dtype.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.weights.safetensors_header import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was written."""

    nbytes: int
    sha256: str


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """The tensors as a new file, flushed to the device. OSError where there is no room; the caller removes the file."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    digest, nbytes = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in _pieces(ordered):
            file.write(piece)
            digest.update(piece)
            nbytes += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return Written(nbytes, digest.hexdigest())


def _pieces(ordered: list[tuple[str, Tensor]]) -> Any:
    yield _header(ordered)
    for _, tensor in ordered:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES].data


def _header(ordered: list[tuple[str, Tensor]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered:
        if tensor.dtype not in NAMES:
            raise FormatError(f"{name} has dtype {tensor.dtype}, which safetensors does not hold")
        end = offset + tensor.nbytes
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
