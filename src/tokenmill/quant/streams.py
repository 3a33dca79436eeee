"""The two streams of a quantization run: residuals of the plain model, and of the model quantized so far.

Windows that methods learn from come first, windows that quality is measured on last. One block is resident at a time.
S tokens of a window, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.models.family import DecoderArch, Family
from tokenmill.quant.block import Block
from tokenmill.quant.measure import Ending
from tokenmill.quant.method import Feed
from tokenmill.quant.text import Tokens
from tokenmill.weights.contract import Source


@dataclass(slots=True)
class Streams:
    """`samples`: how many of the windows, from the first, are for methods."""

    plain: list[Tensor]
    quantized: list[Tensor]
    samples: int

    def feed(self) -> Feed:
        return Feed(self.plain[: self.samples], self.quantized[: self.samples])

    def pass_plain(self, block: Block) -> None:
        self.plain = [block.run(residual) for residual in self.plain]

    def pass_quantized(self, block: Block) -> None:
        self.quantized = [block.run(residual) for residual in self.quantized]

    def error(self) -> float:
        """Squared distance of the streams against the plain one's square, over all windows."""
        apart = sum(float((p - q).square().sum()) for p, q in zip(self.plain, self.quantized, strict=True))
        return apart / max(sum(float(p.square().sum()) for p in self.plain), 1e-30)


def begin(family: Family, arch: DecoderArch, source: Source, tokens: Tokens, device: torch.device) -> Streams:
    """Embedded windows. FormatError where an id is outside the vocabulary."""
    windows = (*tokens.samples, *tokens.held)
    table_VD = source.tensor(f"{family.names.embedding}.weight")
    highest = max((max(window) for window in windows), default=0)
    if highest >= len(table_VD) or min((min(window) for window in windows), default=0) < 0:
        raise FormatError(f"calibration id {highest} is outside the vocabulary of {len(table_VD)}")
    plain = [table_VD[torch.tensor(window)].to(device, torch.float32) for window in windows]
    return Streams(plain, list(plain), len(tokens.samples))


def ending(family: Family, arch: DecoderArch, source: Source, device: torch.device) -> Ending:
    """Final norm and head in fp32."""
    names = family.names
    norm_D = source.tensor(f"{names.norm}.weight").to(device, torch.float32)
    if arch.tied:
        head_VD = source.tensor(f"{names.embedding}.weight").to(device, torch.float32)
    else:
        head_VD = source.weight(names.head).to(device).dequantize(torch.float32)
    return Ending(norm_D, arch.norm_eps, head_VD)
