"""One quantization run as data: what was asked for, what was opened for it, what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tokenmill.models.family import DecoderArch, Family
from tokenmill.models.spec import find_multimodal, read_whole
from tokenmill.quant.block import BlockFacts
from tokenmill.quant.measure import Quality
from tokenmill.quant.method import Method
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.text import Tokens
from tokenmill.weights.contract import Source
from tokenmill.weights.prefix import PrefixSource
from tokenmill.weights.scheme import Scheme
from tokenmill.weights.source import FolderSource

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One run. max_kl: refuse to finish above it. dtype: of plain tensors, None as they are."""

    source: Path
    destination: Path
    recipe: Recipe
    tokens: Tokens
    device: torch.device = torch.device("cpu")
    resume: bool = False
    max_kl: float | None = None
    dtype: torch.dtype | None = None


@dataclass(slots=True)
class Outcome:
    """errors: of the stream after each block, relative. quality: None where no window was held out."""

    scheme: Scheme
    errors: list[float] = field(default_factory=list)
    quality: Quality | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The source and what it is, and how its linears will be written.

    inside: what the names of the decoder's tensors begin with, in a folder that has a vision tower as well.
    """

    source: FolderSource
    family: Family
    arch: DecoderArch
    facts: BlockFacts
    method: Method
    scheme: Scheme
    inside: str = ""

    def prefix(self, index: int) -> str:
        """Of a layer's tensors in the folder."""
        return self.inside + self.family.names.layer.format(index)

    @property
    def decoder(self) -> Source:
        """The part that is quantized, by the family's own names."""
        return PrefixSource(self.source, self.inside)


def decoder_prefix(folder: Path) -> str:
    """What the decoder's names begin with: nothing where a folder holds nothing else."""
    joined = find_multimodal(read_whole(folder))
    return joined.prefix if joined is not None else ""
