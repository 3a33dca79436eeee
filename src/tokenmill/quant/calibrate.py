"""Activation statistics of a model, as LMDeploy's `calibrate` leaves them, for tools that read its work folder.

`inputs_stats.pth` and `outputs_stats.pth`: {max, min, mean, absmax, absmean}, each {linear's name: tensor by channel};
`key_stats.pth` and `value_stats.pth`: {max, min, absmax}, each {layer's name: tensor [kv heads, head_dim]}, K behind
rope as a cache holds it. Means are over all tokens. `model.safetensors` holds the same numbers: it is what
Tokenmill itself reads, because a .pth is a pickle and no pickle of a work folder is ever opened here.

Tokenmill's own methods need none of this; they calibrate as they go, block by block.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.models.spec import read_arch
from tokenmill.quant.block import SITES, Block, block_facts, read_block
from tokenmill.quant.job import decoder_prefix
from tokenmill.quant.streams import begin
from tokenmill.quant.text import Tokens
from tokenmill.weights.export import Export, check_free, staged
from tokenmill.weights.prefix import PrefixSource
from tokenmill.weights.source import open_folder

KINDS = ("max", "min", "mean", "absmax", "absmean")
KV_KINDS = ("max", "min", "absmax")
FILES = {"inputs": KINDS, "outputs": KINDS, "key": KV_KINDS, "value": KV_KINDS}
Stats = dict[tuple[str, str], "Ranges"]


class Ranges:
    """Per channel, over all tokens: largest, least, sum and sum of magnitudes."""

    def __init__(self) -> None:
        self.tokens = 0
        self.high = self.low = self.total = self.magnitude = torch.zeros(0)

    def add(self, x_SC: Tensor) -> None:
        """Tokens first, channels of any shape behind."""
        high, low, total, magnitude = x_SC.amax(0), x_SC.amin(0), x_SC.sum(0), x_SC.abs().sum(0)
        if self.tokens:
            high, low = torch.maximum(high, self.high), torch.minimum(low, self.low)
            total, magnitude = total + self.total, magnitude + self.magnitude
        self.high, self.low, self.total, self.magnitude = high, low, total, magnitude
        self.tokens += len(x_SC)

    def value(self, kind: str) -> Tensor:
        made = {
            "max": self.high, "min": self.low, "mean": self.total / self.tokens,
            "absmax": torch.maximum(self.high, -self.low), "absmean": self.magnitude / self.tokens,
        }[kind]  # fmt: skip
        return made.cpu()


@torch.inference_mode()
def calibrate_folder(
    source: Path, destination: Path, tokens: Tokens, device: torch.device, progress: Callable[[int, int], None]
) -> None:
    """Runs the windows through the model, one block resident, and writes the statistics: all of them or nothing."""
    if not tokens.samples:
        raise ConfigError("calibration needs data: give --calib-samples of 1 or more")
    check_free(destination)
    opened = PrefixSource(open_folder(source), decoder_prefix(source))
    family, arch = read_arch(source)
    facts = block_facts(family, arch, device)
    residuals = begin(family, arch, opened, tokens, device).plain[: len(tokens.samples)]
    stats: Stats = {}
    for index in range(arch.num_layers):
        block = read_block(facts, opened, index, device)
        for residual in residuals:
            observe(block, family.names.layer.format(index), residual, stats)
        residuals = [block.run(residual) for residual in residuals]
        progress(index + 1, arch.num_layers)
    with staged(destination) as out:
        _write(out, stats)
        out.finish({"calibration": {"origin": tokens.origin, "sha256": tokens.digest}})


def observe(block: Block, prefix: str, residual_SD: Tensor, stats: Stats) -> None:
    """Adds what one window shows at every linear, and at the cache."""
    for site in SITES:
        if site == "gate_up":
            residual_SD = block.advance("out", residual_SD)
        x = block.site_input(site, residual_SD)
        for name in block.facts.names(site):
            _ranges(stats, "inputs", prefix + name).add(x)
            _ranges(stats, "outputs", prefix + name).add(block.linear(name, x))
        if site == "qkv":
            _, k, v = block.heads(x)
            _ranges(stats, "key", prefix.rstrip(".")).add(k)
            _ranges(stats, "value", prefix.rstrip(".")).add(v)


def _ranges(stats: Stats, what: str, name: str) -> Ranges:
    return stats.setdefault((what, name), Ranges())


def _write(out: Export, stats: Stats) -> None:
    for what, kinds in FILES.items():
        mine = {name: ranges for (kind, name), ranges in stats.items() if kind == what}
        table: dict[str, Any] = {kind: {name: r.value(kind) for name, r in mine.items()} for kind in kinds}
        held = io.BytesIO()
        torch.save(table, held)
        out.add_bytes(f"{what}_stats.pth", held.getvalue())
        for kind, by_name in table.items():
            for name, value in by_name.items():
                out.add(f"{what}.{kind}.{name}", value)
