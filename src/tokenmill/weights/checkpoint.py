"""Tensors of a checkpoint folder by name, read when asked for.

safetensors first; indexed `*.bin` shards only where there is no safetensors file. Opening reads headers alone, and
checks them against file lengths and the index before anything is allocated. A safetensors tensor is copied out of its
file by one exact read: no mapping outlives the call, so nothing but what was asked for is resident, and a file changed
under us is an error, not a crash. Of pickled shards at most one is open.

Errors (FormatError): no weights, truncated or forged file, missing shard or tensor, index and shards that disagree.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.log import safe
from tokenmill.weights.pickled import PickledShards
from tokenmill.weights.safetensors_header import TensorInfo, read_header

SAFETENSORS_INDEX = "model.safetensors.index.json"
SAFETENSORS_SINGLE = "model.safetensors"
BIN_INDEX = "pytorch_model.bin.index.json"
BIN_SINGLE = "pytorch_model.bin"
MAX_JSON_BYTES = 256_000_000
_OF = re.compile(r"-of-(\d+)\.\w+$")


class Checkpoint:
    """One folder's tensors. Not thread-safe: a loader owns it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._pickled: PickledShards | None = None
        self._infos = self._open(folder)

    def names(self) -> tuple[str, ...]:
        return tuple(self._infos)

    def has(self, name: str) -> bool:
        return name in self._infos

    def info(self, name: str) -> TensorInfo:
        """dtype, shape and place of a tensor, without reading it."""
        if name not in self._infos:
            raise FormatError(f"{self.folder.name} holds no tensor {safe(name, 200)}{self._hint(name)}")
        return self._infos[name]

    def tensor(self, name: str) -> Tensor:
        """A fresh contiguous CPU tensor, dtype and shape as on disk."""
        info = self.info(name)
        if self._pickled is not None:
            return self._pickled.tensor(info.path, name)
        return _read(info)

    def _open(self, folder: Path) -> dict[str, TensorInfo]:
        if not folder.is_dir():
            raise FormatError(f"{folder} is not a folder: give a checkpoint folder with config.json and weights")
        if folder.name.endswith(".partial"):
            raise FormatError(f"{folder.name} was never finished: run the command that wrote it again")
        shards = _safetensors_shards(folder)
        if shards is not None:
            return _collect(folder, *shards)
        bins = _bin_shards(folder)
        if bins is None:
            raise FormatError(f"{folder.name} holds no weights: {SAFETENSORS_SINGLE} or {SAFETENSORS_INDEX} is needed")
        self._pickled = PickledShards(folder, bins[0])
        return self._pickled.infos(bins[1])

    def _hint(self, name: str) -> str:
        module = name.rpartition(".")[0]
        near = [n for n in self._infos if n.rpartition(".")[0] == module][:4]
        return f" (that module has {', '.join(near)})" if near else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size. FormatError names the file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FormatError(f"{path.name}: above the limit of {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path.parent.name} has no {path.name}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path.name} is not valid JSON ({safe(str(error), 120)})") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} must hold a JSON object")
    return value


def read_index(path: Path) -> dict[str, str]:
    """weight_map of an index file: tensor name -> shard file, plain file names only."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path.name} has no weight_map")
    for file in set(map(str, weight_map.values())):
        if Path(file).name != file or file in (".", "..") or "\\" in file:
            raise FormatError(f"{path.name} names {safe(file, 200)}: shards must lie in the folder itself")
    return {str(name): str(file) for name, file in weight_map.items()}


def _safetensors_shards(folder: Path) -> tuple[list[str], dict[str, str] | None] | None:
    """Shard files and, where there is one, the index. Without an index every numbered shard must be there."""
    if (folder / SAFETENSORS_INDEX).is_file():
        weight_map = read_index(folder / SAFETENSORS_INDEX)
        return sorted(set(weight_map.values())), weight_map
    if (folder / SAFETENSORS_SINGLE).is_file():
        return [SAFETENSORS_SINGLE], None
    files = sorted(p.name for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated"))
    for file in files:
        of = _OF.search(file)
        if of and int(of[1]) != len(files):
            raise FormatError(f"{folder.name} has {len(files)} of {int(of[1])} shards and no {SAFETENSORS_INDEX}")
    return (files, None) if files else None


def _bin_shards(folder: Path) -> tuple[list[str], dict[str, str] | None] | None:
    if (folder / BIN_INDEX).is_file():
        weight_map = read_index(folder / BIN_INDEX)
        return sorted(set(weight_map.values())), weight_map
    return ([BIN_SINGLE], None) if (folder / BIN_SINGLE).is_file() else None


def _collect(folder: Path, files: list[str], weight_map: dict[str, str] | None) -> dict[str, TensorInfo]:
    """All headers, held against the index. Tensors the index does not name are not part of the checkpoint."""
    infos: dict[str, TensorInfo] = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise FormatError(f"{folder.name}: the index names {file}, which is missing: download it again")
        for name, info in read_header(path)[0].items():
            if weight_map is not None and weight_map.get(name) != file:
                continue
            if name in infos:
                raise FormatError(f"{safe(name, 200)} lies in both {infos[name].path.name} and {file}")
            infos[name] = info
    lost = next((name for name in weight_map or () if name not in infos), None)
    if lost is not None and weight_map is not None:
        raise FormatError(f"the index places {safe(lost, 200)} in {weight_map[lost]}, which does not hold it")
    return infos


def _read(info: TensorInfo) -> Tensor:
    buffer = torch.empty(info.nbytes, dtype=torch.uint8)
    with info.path.open("rb", buffering=0) as file:
        file.seek(info.offset)
        view, done = memoryview(buffer.numpy()), 0  # type: ignore[arg-type]
        while done < info.nbytes:
            got = file.readinto(view[done:])
            if not got:
                raise FormatError(f"{info.path.name} ended at {info.offset + done}: it changed while it was read")
            done += got
    return buffer.view(info.dtype).view(info.shape)
