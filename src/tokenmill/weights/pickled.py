"""Old `pytorch_model*.bin` shards: the one place that calls torch.load, and only with weights_only.

Old quantizers wrote such files, so they are read, with a warning and the way out of them. At most one shard is mapped.
Other pickles (.pt, .pth, .ckpt) are never opened.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.log import get_logger, safe
from tokenmill.weights.safetensors_header import TensorInfo

CONVERT_HINT = "save it as safetensors: `tokenmill convert-weights SRC DST --to safetensors`"


class PickledShards:
    """Tensors of `*.bin` files of one folder, one file mapped at a time."""

    def __init__(self, folder: Path, files: list[str]):
        self._paths = [folder / file for file in files]
        self._open: tuple[Path, dict[str, Tensor]] | None = None
        for path in self._paths:
            if not path.is_file():
                raise FormatError(f"{folder.name}: the index names {path.name}, which is missing: download it again")
        get_logger().warning("%s holds pickled weights; %s", folder.name, CONVERT_HINT)

    def infos(self, weight_map: dict[str, str] | None) -> dict[str, TensorInfo]:
        """Every tensor by name; each shard is mapped once, in turn."""
        infos: dict[str, TensorInfo] = {}
        for path in self._paths:
            for name, tensor in self._load(path).items():
                if weight_map is None or weight_map.get(name) == path.name:
                    infos[name] = TensorInfo(path, tensor.dtype, tuple(tensor.shape), 0)
        lost = next((name for name in weight_map or () if name not in infos), None)
        if lost is not None and weight_map is not None:
            raise FormatError(f"the index places {safe(lost, 200)} in {weight_map[lost]}, which does not hold it")
        return infos

    def tensor(self, path: Path, name: str) -> Tensor:
        """A copy, so that no mapping outlives the call."""
        return self._load(path)[name].clone(memory_format=torch.contiguous_format)

    def _load(self, path: Path) -> dict[str, Tensor]:
        if self._open is None or self._open[0] != path:
            self._open = None
            self._open = (path, _load_tensors(path))
        return self._open[1]


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever an unpickler meets in a forged file
        why = safe((str(error).splitlines() or [type(error).__name__])[0], 160)
        raise FormatError(f"{path.name} is no plain table of tensors, or damaged ({why}); {CONVERT_HINT}") from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) and isinstance(n, str) for n, t in loaded.items()):
        raise FormatError(f"{path.name} holds something other than tensors by name; {CONVERT_HINT}")
    return loaded
