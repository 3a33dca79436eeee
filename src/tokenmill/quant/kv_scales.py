"""Scales of LMDeploy's first int8 KV cache, one set a layer, from what `calibrate` saw; for its old workspaces.

`layers.I.past_kv_scale.R.weight` holds four fp32 numbers, k scale, k zero, v scale, v zero, with zero = (min + max) / 2
and scale = (max - min) / 255, or two, absmax / 127 of k and of v, where symmetric; R is the tensor-parallel rank, whose
share of the heads it is taken over. Tokenmill's own cache scales every token and head as it is written, which is
closer, and reads none of these files.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from tokenmill.errors import ConfigError, FormatError
from tokenmill.weights.checkpoint import Checkpoint

LEVELS = 255
SYMMETRIC_LEVELS = 127
_LAYER = re.compile(r"(key|value)\.(max|min|absmax)\.(.*?)(\d+)$")
Extremes = dict[str, torch.Tensor]


def read_extremes(work_dir: Path) -> list[Extremes]:
    """By layer: `key.max`, `key.min`, .. [heads, head_dim]. FormatError where the folder holds none."""
    if not any(work_dir.glob("*.safetensors")):
        old = " (its .pth files are pickles, which are not opened)" if any(work_dir.glob("*_stats.pth")) else ""
        raise FormatError(f"{work_dir} holds no calibration of Tokenmill{old}: run tokenmill lite calibrate first")
    checkpoint = Checkpoint(work_dir)
    layers: dict[int, Extremes] = {}
    for name in checkpoint.names():
        if found := _LAYER.match(name):
            layers.setdefault(int(found[4]), {})[f"{found[1]}.{found[2]}"] = checkpoint.tensor(name)
    if not layers:
        raise FormatError(f"{work_dir} holds weights and no statistics: name the --work-dir of lite calibrate")
    return [layers[index] for index in sorted(layers)]


def scales(extremes: Extremes, rank: int, ranks: int, symmetric: bool) -> list[float]:
    """The numbers of one layer and rank."""
    found: list[float] = []
    for which in ("key", "value"):
        share = {k: _share(extremes[f"{which}.{k}"], rank, ranks) for k in ("max", "min", "absmax")}
        if symmetric:
            found.append(float(share["absmax"].max()) / SYMMETRIC_LEVELS)
            continue
        high, low = float(share["max"].max()), float(share["min"].min())
        found += [(high - low) / LEVELS, (high + low) / 2]
    return found


def _share(value_GK: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    heads = len(value_GK)
    if heads % ranks:
        raise ConfigError(f"--num-tp {ranks} does not divide the {heads} KV heads")
    size = heads // ranks
    return value_GK[rank * size : (rank + 1) * size]


def write_scales(work_dir: Path, weights_dir: Path, ranks: int, symmetric: bool) -> int:
    """Writes every layer's file into the workspace's weights; how many. Nothing is written where one cannot be made."""
    if not weights_dir.is_dir():
        raise ConfigError(f"{weights_dir} is no folder: name the workspace's triton_models/weights")
    made = {
        f"layers.{layer}.past_kv_scale.{rank}.weight": scales(extremes, rank, ranks, symmetric)
        for layer, extremes in enumerate(read_extremes(work_dir))
        for rank in range(ranks)
    }
    for name, values in made.items():
        fresh = weights_dir / f"{name}.new"
        fresh.write_bytes(np.array(values, "<f4").tobytes())
        fresh.rename(weights_dir / name)
    return len(made)
