"""A vision transformer over patches of whole pictures of any size, turned by row and column; vectors of four patches.

N patches of all pictures in order, four neighbours together; D hidden, H heads, K head dim, F ffn, P numbers of a patch
in its frame; W windows of L patches; V vectors (N / 4). Weights are whole on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tokenmill.kernels.expect import expect
from tokenmill.layers.linear import Linear, Loader, Part
from tokenmill.layers.vit import TileNorm, shaped, whole_linear
from tokenmill.weights.classes import Dense

MERGE = 2
THETA = 10000.0
QUICK_GELU = 1.702
Grids = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class PatchVitArch:
    """`norm`: layer_norm or rms_norm. `gated`: SwiGLU in place of two linears with quick GELU. `window`: vectors along
    the side of what layers other than `full_layers` see (0: all see their picture). `frames` of a patch."""

    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    frames: int
    norm: str
    eps: float
    gated: bool
    window: int = 0
    full_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Windows:
    """patches_WL: what each window holds, padded by patch 0; seen_WL: False at padding; back_N: where each patch is in
    the flattened windows."""

    patches_WL: Tensor
    seen_WL: Tensor
    back_N: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Pictures of one batch: their patches' counts, cos and sin fp32 [N, 1, K / 2], windows where there are any."""

    counts: tuple[int, ...]
    cos: Tensor
    sin: Tensor
    windows: Windows | None


class PatchBlock:
    """x += attention(norm1(x)); x += mlp(norm2(x))."""

    def __init__(self, loader: Loader, a: PatchVitArch, prefix: str, windowed: bool):
        D, F = a.hidden_size, a.ffn_size
        self.num_heads, self.windowed = a.num_heads, windowed
        self.norm1 = TileNorm(loader, f"{prefix}norm1", D, a.norm, a.eps)
        self.norm2 = TileNorm(loader, f"{prefix}norm2", D, a.norm, a.eps)
        self.qkv = whole_linear(loader, f"{prefix}attn.qkv", 3 * D, D)
        self.proj = whole_linear(loader, f"{prefix}attn.proj", D, D)
        ups = ("gate_proj", "up_proj") if a.gated else ("fc1",)
        self.ups = tuple(whole_linear(loader, f"{prefix}mlp.{name}", F, D) for name in ups)
        self.down = whole_linear(loader, f"{prefix}mlp.{'down_proj' if a.gated else 'fc2'}", D, F)

    def __call__(self, x_ND: Tensor, layout: Layout) -> Tensor:
        x_ND = x_ND + self._attention(self.norm1(x_ND), layout)
        return x_ND + self._mlp(self.norm2(x_ND))

    def _mlp(self, x_ND: Tensor) -> Tensor:
        y_NF = self.ups[0](x_ND)
        if len(self.ups) == 1:
            return self.down(y_NF * torch.sigmoid(QUICK_GELU * y_NF))
        return self.down(functional.silu(y_NF) * self.ups[1](x_ND))

    def _attention(self, x_ND: Tensor, layout: Layout) -> Tensor:
        N, D = x_ND.shape
        q, k, v = self.qkv(x_ND).view(N, 3, self.num_heads, -1).unbind(1)
        q, k = _turn(q, layout), _turn(k, layout)
        if self.windowed and layout.windows is not None:
            y_NHK = _within_windows(q, k, v, layout.windows)
        else:
            y_NHK = _within_pictures(q, k, v, layout.counts)
        return self.proj(y_NHK.reshape(N, D))


def _turn(x_NHK: Tensor, layout: Layout) -> Tensor:
    first, second = x_NHK.float().chunk(2, -1)
    turned = first * layout.cos - second * layout.sin, second * layout.cos + first * layout.sin
    return torch.cat(turned, -1).to(x_NHK.dtype)


def _within_pictures(q: Tensor, k: Tensor, v: Tensor, counts: tuple[int, ...]) -> Tensor:
    parts = zip(*(torch.split(x.transpose(0, 1), list(counts), 1) for x in (q, k, v)), strict=True)
    seen = [functional.scaled_dot_product_attention(*(x[None] for x in part))[0] for part in parts]
    return torch.cat(seen, 1).transpose(0, 1)


def _within_windows(q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
    q, k, v = (x[windows.patches_WL].transpose(1, 2) for x in (q, k, v))
    y_WHLK = functional.scaled_dot_product_attention(q, k, v, attn_mask=windows.seen_WL[:, None, None])
    return y_WHLK.transpose(1, 2).flatten(0, 1)[windows.back_N]


class PatchVit:
    """`vit(pixels, grids) -> [N, D]`: scaled patches [N, P] of pictures with these rows and columns of vectors."""

    def __init__(self, loader: Loader, a: PatchVitArch, prefix: str):
        D, P = a.hidden_size, 3 * a.patch_size**2
        self.arch, self.dtype, self.device = a, loader.dtype, loader.device
        kernel = shaped(loader, f"{prefix}patch_embed.proj.weight", (D, 3, a.frames, a.patch_size, a.patch_size))
        # A still picture shows every frame the same, so their weights add up.
        summed = kernel.float().sum(2).reshape(D, P)
        self.patch = Linear((Part(Dense(summed), None, 1),), "replicated", loader)
        layers = range(a.num_layers)
        windowed = [a.window > 0 and index not in a.full_layers for index in layers]
        self.blocks = tuple(PatchBlock(loader, a, f"{prefix}blocks.{i}.", windowed[i]) for i in layers)
        self.windowed = any(windowed)

    def __call__(self, pixels_NP: Tensor, grids: Grids) -> Tensor:
        N = MERGE**2 * sum(map(prod, grids))
        expect(pixels_NP, (N, 3 * self.arch.patch_size**2), self.dtype, "patches")
        layout = self.layout(grids)
        x_ND = self.patch(pixels_NP)
        for block in self.blocks:
            x_ND = block(x_ND, layout)
        return x_ND

    def layout(self, grids: Grids) -> Layout:
        places_N2 = np.concatenate([_places(*grid) for grid in grids]).astype(np.float32)
        half = self.arch.hidden_size // self.arch.num_heads // 2
        freqs = 1.0 / THETA ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
        angles = (torch.from_numpy(places_N2)[..., None] * freqs).flatten(1)[:, None]
        counts = tuple(MERGE**2 * prod(grid) for grid in grids)
        windows = self._windows(grids) if self.windowed else None
        return Layout(counts, self._upload(angles.cos()), self._upload(angles.sin()), windows)

    def _windows(self, grids: Grids) -> Windows:
        patches_WL = window_patches(grids, self.arch.window)
        seen_WL = patches_WL >= 0
        back_N = np.empty(int(seen_WL.sum()), np.int64)
        back_N[patches_WL[seen_WL]] = np.flatnonzero(seen_WL)
        parts = (np.maximum(patches_WL, 0), seen_WL, back_N)
        return Windows(*(self._upload(torch.from_numpy(part)) for part in parts))

    def _upload(self, host: Tensor) -> Tensor:
        # Pinned, so that nothing waits for the device.
        return host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host


def _places(rows: int, columns: int) -> NDArray[np.int64]:
    """Row and column of every patch of a picture, [N, 2]: four neighbours together."""
    at = np.indices((rows * MERGE, columns * MERGE))
    grouped = at.reshape(2, rows, MERGE, columns, MERGE).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(grouped.reshape(-1, 2))


def window_patches(grids: Grids, side: int) -> NDArray[np.int64]:
    """Patches of every window [W, L], -1 where a window reaches over its picture's edge."""
    found = []
    first = 0
    for rows, columns in grids:
        down, across = -(-rows // side), -(-columns // side)
        whole = np.full((down * side, across * side), -1, np.int64)
        whole[:rows, :columns] = first + np.arange(rows * columns).reshape(rows, columns)
        found.append(whole.reshape(down, side, across, side).swapaxes(1, 2).reshape(-1, side * side))
        first += rows * columns
    vectors = np.concatenate(found)[..., None]
    patches = np.where(vectors < 0, -1, vectors * MERGE**2 + np.arange(MERGE**2))
    return np.ascontiguousarray(patches.reshape(len(vectors), -1))


class Merger:
    """Four neighbours to one vector of the language model: norm, joined, two linears with GELU."""

    def __init__(self, loader: Loader, a: PatchVitArch, prefix: str, out_size: int):
        self.width = a.hidden_size * MERGE**2
        self.norm = TileNorm(loader, f"{prefix}ln_q", a.hidden_size, a.norm, a.eps)
        self.fc1 = whole_linear(loader, f"{prefix}mlp.0", self.width, self.width)
        self.fc2 = whole_linear(loader, f"{prefix}mlp.2", out_size, self.width)

    def __call__(self, x_ND: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(self.norm(x_ND).view(-1, self.width))))
