"""A vision transformer over square tiles: patches, CLS and position, then blocks. No causal mask.

N tiles, S tokens of a tile (CLS first), D hidden, H heads, K head dim, F ffn, P pixels of a patch in all channels.
Weights are whole on every rank: each rank encodes every tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.errors import FormatError
from tokenmill.kernels.expect import expect
from tokenmill.layers.linear import Linear, Loader, Part, read_bias, read_part
from tokenmill.weights.classes import Dense


@dataclass(frozen=True, slots=True)
class VitArch:
    """`norm`: layer_norm or rms_norm. `qk_norm`: RMSNorm of q and k over all heads at once. `run_layers`: of those on
    disk, how many are run. `activation`: a key of ACTIVATIONS. `layer_scale`: a factor for each channel on what a half
    block adds. `patch_bias`: of the patches' linear. `cls`: a token of its own before the patches'. `first_norm`: a
    norm before the blocks; `last_norm`: one behind them."""

    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    tile_size: int
    patch_size: int
    norm: str
    eps: float
    qk_norm: bool
    qkv_bias: bool
    run_layers: int
    activation: str = "gelu"
    layer_scale: bool = True
    patch_bias: bool = True
    first_norm: bool = False
    cls: bool = True
    last_norm: bool = False

    @property
    def side(self) -> int:
        """Patches along a tile's side."""
        return self.tile_size // self.patch_size


@dataclass(frozen=True, slots=True)
class VitNames:
    """Where a checkpoint keeps what. `layer` has one place for the layer's index and ends in a dot. `cls`,
    `first_norm`, `last_norm`: where the arch has one. Names within a layer are `VitBlock`'s; `weights/renamed.py`
    serves checkpoints with others."""

    cls: str
    patch: str
    position: str
    layer: str
    first_norm: str = ""
    last_norm: str = ""


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class TileNorm:
    """LayerNorm or RMSNorm of the last axis."""

    def __init__(self, loader: Loader, name: str, size: int, kind: str, eps: float):
        self.kind, self.eps = kind, eps
        self.weight = loader.vector(f"{name}.weight", size)
        self.bias = loader.vector(f"{name}.bias", size) if kind == "layer_norm" else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.kind == "layer_norm":
            return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def whole_linear(loader: Loader, name: str, N: int, M: int, bias: bool = True) -> Linear:
    return Linear((read_part(loader.source, name, (N, M), 1, bias),), "replicated", loader)


class VitBlock:
    """x += ls1 * attention(norm1(x)); x += ls2 * mlp(norm2(x)); both factors are 1 without layer scale."""

    def __init__(self, loader: Loader, a: VitArch, prefix: str):
        D, F = a.hidden_size, a.ffn_size
        self.num_heads, self.activation = a.num_heads, ACTIVATIONS[a.activation]
        self.norm1 = TileNorm(loader, f"{prefix}norm1", D, a.norm, a.eps)
        self.norm2 = TileNorm(loader, f"{prefix}norm2", D, a.norm, a.eps)
        self.qkv = whole_linear(loader, f"{prefix}attn.qkv", 3 * D, D, a.qkv_bias)
        names = ("attn.q_norm", "attn.k_norm") if a.qk_norm else ()
        self.qk_norms = tuple(TileNorm(loader, prefix + name, D, "rms_norm", a.eps) for name in names)
        self.proj = whole_linear(loader, f"{prefix}attn.proj", D, D)
        self.fc1 = whole_linear(loader, f"{prefix}mlp.fc1", F, D)
        self.fc2 = whole_linear(loader, f"{prefix}mlp.fc2", D, F)
        self.scales = [loader.vector(f"{prefix}{name}", D) for name in ("ls1", "ls2") if a.layer_scale]

    def __call__(self, x_NSD: Tensor) -> Tensor:
        x_NSD = x_NSD + self._scaled(0, self._attention(self.norm1(x_NSD)))
        y_TD = self.norm2(x_NSD).flatten(0, 1)
        return x_NSD + self._scaled(1, self.fc2(self.activation(self.fc1(y_TD))).view_as(x_NSD))

    def _scaled(self, half: int, x_NSD: Tensor) -> Tensor:
        return self.scales[half] * x_NSD if self.scales else x_NSD

    def _attention(self, x_NSD: Tensor) -> Tensor:
        N, S, D = x_NSD.shape
        q_TD, k_TD, v_TD = torch.split(self.qkv(x_NSD.flatten(0, 1)), D, -1)
        if self.qk_norms:
            q_TD, k_TD = self.qk_norms[0](q_TD), self.qk_norms[1](k_TD)
        q, k, v = (x.reshape(N, S, self.num_heads, -1).transpose(1, 2) for x in (q_TD, k_TD, v_TD))
        y_NHSK = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y_NHSK.transpose(1, 2).reshape(N * S, D)).view(N, S, D)


class Vit:
    """`vit(pixels) -> [N, S, D]`: normalised tiles [N, size, size, 3] in, all tokens of the last run layer out."""

    def __init__(self, loader: Loader, a: VitArch, names: VitNames):
        D, P = a.hidden_size, 3 * a.patch_size**2
        self.arch, self.dtype = a, loader.dtype
        kernel = shaped(loader, f"{names.patch}.weight", (D, 3, a.patch_size, a.patch_size)).view(D, P)
        patch = Part(Dense(kernel), read_bias(loader.source, names.patch, D, a.patch_bias), 1)
        self.patch = Linear((patch,), "replicated", loader)
        self.cls_11D = shaped(loader, names.cls, (1, 1, D)).to(loader.device, loader.dtype) if a.cls else None
        position = shaped(loader, names.position, (1, int(a.cls) + a.side**2, D))
        self.position_1SD = position.to(loader.device, loader.dtype)
        self.first_norm = TileNorm(loader, names.first_norm, D, a.norm, a.eps) if a.first_norm else None
        self.last_norm = TileNorm(loader, names.last_norm, D, a.norm, a.eps) if a.last_norm else None
        self.blocks = tuple(VitBlock(loader, a, names.layer.format(index)) for index in range(a.run_layers))

    def __call__(self, pixels: Tensor) -> Tensor:
        N, size, side = len(pixels), self.arch.tile_size, self.arch.side
        expect(pixels, (N, size, size, 3), self.dtype, "tiles")
        cut = pixels.view(N, side, self.arch.patch_size, side, self.arch.patch_size, 3).permute(0, 1, 3, 5, 2, 4)
        x_NSD = self.patch(cut.reshape(N * side * side, -1)).view(N, side * side, -1)
        if self.cls_11D is not None:
            x_NSD = torch.cat([self.cls_11D.expand(N, 1, -1), x_NSD], 1)
        x_NSD = x_NSD + self.position_1SD
        if self.first_norm is not None:
            x_NSD = self.first_norm(x_NSD)
        for block in self.blocks:
            x_NSD = block(x_NSD)
        return x_NSD if self.last_norm is None else self.last_norm(x_NSD)


def shaped(loader: Loader, name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape; axes of one place may be missing on disk."""
    value = loader.source.tensor(name)
    if [size for size in value.shape if size != 1] != [size for size in shape if size != 1]:
        raise FormatError(f"{name} has shape {tuple(value.shape)}; config.json asks for {shape}")
    return value.reshape(shape)


def shuffle_pixels(x_NSD: Tensor, side: int) -> Tensor:
    """Tokens of a side x side grid, four neighbours joined: [N, side * side / 4, 4 D], neighbours row by row."""
    N, D = len(x_NSD), x_NSD.shape[-1]
    half = side // 2
    grid = x_NSD.view(N, half, 2, half, 2, D).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(N, half * half, 4 * D)
