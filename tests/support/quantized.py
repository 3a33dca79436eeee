"""Small models with calibration streams, for tests of quantization."""

from __future__ import annotations

import torch

from tokenmill.models.spec import read_arch
from tokenmill.models.tiny import make_tiny
from tokenmill.quant.block import block_facts, read_block
from tokenmill.quant.method import Feed
from tokenmill.weights.source import open_source


def tiny_block(folder, family="llama", seed=0, **overrides):
    """Block 0 of a random model and its folder's family record."""
    if not (folder / "config.json").exists():
        make_tiny(family, folder, seed, overrides=overrides)
    found, arch = read_arch(folder)
    return read_block(block_facts(found, arch), open_source(folder), 0)


def streams(num=6, tokens=64, width=128, seed=0, outliers=3):
    """Residuals with a few channels far larger than the rest, as trained models have, and correlated channels."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width // 4, width, generator=g)
    channels = torch.ones(width)
    channels[torch.randperm(width, generator=g)[:outliers]] = 30.0
    made = []
    for _ in range(num):
        base = torch.randn(tokens, width // 4, generator=g) @ mix * 0.3 + torch.randn(tokens, width, generator=g)
        made.append(base * channels)
    return made


def feed_of(made):
    return Feed(plain=made, quantized=list(made))
