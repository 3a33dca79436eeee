"""A checkpoint by name of linear or tensor: disk formats end here, weight classes begin.

The format comes from config.json's quantization_config (in the text model's part for multimodal models), or from a GPTQ
folder's quantize_config.json; never from a path. A linear whose quantized tensors are absent is read as plain. Tied
embeddings, fusion and sharding are the caller's: `has`, `join` and `split` serve them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.log import safe
from tokenmill.weights.checkpoint import Checkpoint, read_json
from tokenmill.weights.contract import Source, Weight
from tokenmill.weights.format import detect, load_format, quantization_config
from tokenmill.weights.scheme import Scheme, Suffixes


class FolderSource:
    """`contract.Source` over a checkpoint folder. `scheme` says what config.json announced."""

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme):
        self.checkpoint = checkpoint
        self.scheme = scheme

    def names(self) -> tuple[str, ...]:
        return self.checkpoint.names()

    def has(self, name: str) -> bool:
        return self.checkpoint.has(name)

    def tensor(self, name: str) -> Tensor:
        return self.checkpoint.tensor(name)

    def weight(self, name: str) -> Weight:
        scheme, found = self._claim(name)
        joiner = load_format(scheme.format).suffixes(scheme).joiner
        tensors = {suffix: self.checkpoint.tensor(name + joiner + suffix) for suffix in found}
        try:
            return load_format(scheme.format).read(tensors, scheme)
        except FormatError as error:
            raise FormatError(f"{safe(name, 200)}: {error}") from error

    def quantized(self, name: str) -> tuple[str, ...]:
        """Suffixes of the tensors that make `name` a quantized linear; () where it is plain or nothing."""
        scheme = self.scheme.at(name)
        if scheme is None or scheme.format == "dense":
            return ()
        return self._present(name, load_format(scheme.format).suffixes(scheme))

    def _claim(self, name: str) -> tuple[Scheme, tuple[str, ...]]:
        """The scheme whose tensors lie at this name, and their suffixes: what was announced first, then plain."""
        announced = self.scheme.at(name)
        for scheme in (announced, Scheme("dense")):
            if scheme is not None and (found := self._present(name, load_format(scheme.format).suffixes(scheme))):
                return scheme, found
        there = [n for n in self.names() if n.startswith(name + ".")]
        if not there:
            raise FormatError(f"{self.checkpoint.folder.name} holds nothing called {safe(name, 200)}")
        raise FormatError(
            f"no format claims {', '.join(there[:6])}: config.json announces {self.scheme.format!r}; "
            "is its quantization_config right?"
        )

    def _present(self, name: str, suffixes: Suffixes) -> tuple[str, ...]:
        start = name + suffixes.joiner
        if not all(self.has(start + suffix) for suffix in suffixes.needed):
            return ()
        return suffixes.needed + tuple(s for s in suffixes.optional if self.has(start + s))


def open_source(folder: str | Path) -> Source:
    """The checkpoint in `folder`, headers checked, nothing read yet. Raises FormatError."""
    return open_folder(folder)


def open_folder(folder: str | Path) -> FolderSource:
    """As `open_source`, for those who also want the scheme and the checkpoint (writers, converters, reports)."""
    path = Path(folder)
    checkpoint = Checkpoint(path)
    return FolderSource(checkpoint, read_scheme(path))


def read_scheme(folder: str | Path) -> Scheme:
    """What a folder's config.json (or quantize_config.json) announces, without opening weights."""
    path = Path(folder)
    config = read_json(path / "config.json")
    beside = path / "quantize_config.json"
    if quantization_config(config) is None and beside.is_file():
        return detect({"quantization_config": {"quant_method": "gptq", **read_json(beside)}})
    if quantization_config(config) is None:
        return detect({**config, **_managed(path, config)})
    return detect(config)


def _managed(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """LMDeploy's hub models of 2023 say 4 bits in a `turbomind` object, or only by the statistics AWQ left behind."""
    said = config.get("turbomind")
    if isinstance(said, dict) and (said.get("group_size") or said.get("weight_type") == "int4"):
        group = said.get("group_size") or 128
    elif (path / "outputs_stats.pth").is_file():
        group = 128
    else:
        return {}
    return {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}}
