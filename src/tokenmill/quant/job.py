"""One quantization run as data: what was asked for, what was opened for it, what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tokenmill.models.family import DecoderArch, Family
from tokenmill.quant.block import BlockFacts
from tokenmill.quant.measure import Quality
from tokenmill.quant.method import Method
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.text import Tokens
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
    """The source and what it is, and how its linears will be written."""

    source: FolderSource
    family: Family
    arch: DecoderArch
    facts: BlockFacts
    method: Method
    scheme: Scheme

    def prefix(self, index: int) -> str:
        return self.family.names.layer.format(index)
