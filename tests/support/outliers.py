"""Outliers put into a Llama checkpoint without changing what it computes: what trained large models have by themselves.

Per layer: a few residual channels grow by a at each norm and shrink in the linears that read it; rows of up grow and
down's columns shrink; rows of v grow and the columns of o behind the same values shrink; rotated pairs of k grow and
those of q shrink. Everything is exact but for rounding.
"""

from __future__ import annotations

import math

import torch
from safetensors.torch import load_file, save_file


def _growth(count, g, low=8.0, high=40.0):
    return torch.empty(count).uniform_(math.log(low), math.log(high), generator=g).exp()


def _some(size, frac, g):
    return torch.randperm(size, generator=g)[: max(1, int(size * frac))]


def inject(folder, config, seed=0):
    """Changes folder/model.safetensors in place. `config`: the checkpoint's config.json."""
    t, g = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(seed)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    channels = _some(config["hidden_size"], 0.02, g)
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        q, k, v, o = (t[f"{p}self_attn.{n}_proj.weight"] for n in "qkvo")
        gate, up, down = (t[f"{p}mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        for norm, readers in (("input_layernorm", (q, k, v)), ("post_attention_layernorm", (gate, up))):
            a = _growth(len(channels), g)
            t[f"{p}{norm}.weight"][channels] *= a
            for w in readers:
                w[:, channels] /= a
        rows = _some(len(up), 0.02, g)
        a = _growth(len(rows), g)
        up[rows] *= a[:, None]
        down[:, rows] /= a
        rows = _some(len(v), 0.02, g)
        a = _growth(len(rows), g)
        v[rows] *= a[:, None]
        for row, grown in zip(rows.tolist(), a.tolist(), strict=True):
            group, d = divmod(row, dim)
            for head in range(group * heads // kv, (group + 1) * heads // kv):
                o[:, head * dim + d] /= grown
        for group in range(kv):
            for pair in _some(dim // 2, 2 / (dim // 2), g).tolist():
                for d in (pair, pair + dim // 2):
                    k[group * dim + d] *= 8
                    for head in range(group * heads // kv, (group + 1) * heads // kv):
                        q[head * dim + d] /= 8
    save_file(t, folder / "model.safetensors", {"format": "pt"})
