"""InternLM2 as a training model whose parameters carry the on-disk names and layout.

Contract: `DemoModel(arch)` takes a `Batch` of packed tokens and returns hidden states (T, hidden) or, through `loss`,
the mean negative log likelihood over the learnt positions. `state_dict()` keys are those of an InternLM2 checkpoint
(`wqkv` rows grouped per kv head: g query heads, one key, one value); `export.py` only undoes the embedding scale and
the tie. Forward: RMSNorm in fp32, half-rotation RoPE at the plain base (training stays below
max_position_embeddings), SwiGLU, no biases. Attention is block diagonal: each sample sees only itself.

Shapes: T packed tokens, D hidden, S samples of a group, L padded length, G kv heads, g queries per kv head, K head
dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# cuDNN builds a plan for every shape it has not met, and packed groups have another shape in every batch.
torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True, slots=True)
class Arch:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool = False
    embed_scale: float = 1.0
    eps: float = 1e-5
    rope_theta: float = 1e6
    max_positions: int = 2048

    @property
    def parameters_on_disk(self) -> int:
        qkv = self.hidden * self.head_dim * (self.heads + 2 * self.kv_heads)
        layer = qkv + self.hidden * self.head_dim * self.heads + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + 2 * self.vocab * self.hidden + self.hidden


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed samples.

    `groups` are (S, L) indices into the packed axis, T marking padding; `flat` (T) finds each token again in the
    concatenation of the groups. `learn` (P) are the positions whose next token is learnt, `target` (P) that token.
    """

    tokens: Tensor
    positions: Tensor
    groups: list[Tensor]
    flat: Tensor
    learn: Tensor
    target: Tensor

    def to_wire(self) -> tuple[Tensor, list[int]]:
        """All numbers in one int32 tensor, and the sizes to take it apart: one transfer, one file descriptor."""
        parts = (self.tokens, self.positions, self.flat, self.learn, self.target, *self.groups)
        sizes = [len(self.tokens), len(self.learn), *(n for g in self.groups for n in g.shape)]
        return torch.cat([p.flatten().int() for p in parts]), sizes

    @staticmethod
    def from_wire(wire: tuple[Tensor, list[int]], device: torch.device) -> Batch:
        numbers, (total, learnt, *shapes) = wire
        shape = list(zip(shapes[::2], shapes[1::2], strict=True))
        lengths = [total, total, total, learnt, learnt, *(rows * width for rows, width in shape)]
        tokens, positions, flat, learn, target, *rest = numbers.to(device, non_blocking=True).long().split(lengths)
        groups = [part.view(size) for part, size in zip(rest, shape, strict=True)]
        return Batch(tokens, positions, groups, flat, learn, target)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-rotation RoPE of x (T, heads, K) by cos, sin (T, 1, K/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        rows = (arch.heads + 2 * arch.kv_heads) * arch.head_dim
        self.wqkv = nn.Linear(arch.hidden, rows, bias=False)
        self.wo = nn.Linear(arch.heads * arch.head_dim, arch.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        a, per = self.arch, self.arch.heads // self.arch.kv_heads
        grouped = self.wqkv(x).view(-1, a.kv_heads, per + 2, a.head_dim)
        q = grouped[:, :, :per].reshape(-1, a.heads, a.head_dim)
        k, v = grouped[:, :, per], grouped[:, :, per + 1]
        out = block_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, batch)
        return self.wo(out)


class Spread(torch.autograd.Function):
    """Packed rows (T, ...) to the places of all groups (N, ...), zeros where there is padding. Each token has one
    place, so the way back is a gather too: indexing's own gradient sorts all places and adds up the padding's one by
    one.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, index: Tensor, flat: Tensor) -> Tensor:
        ctx.save_for_backward(flat)
        return _with_zeros(packed)[index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.saved_tensors[0]], None, None


class Collect(torch.autograd.Function):
    """`Spread` the other way round."""

    @staticmethod
    def forward(ctx: Any, placed: Tensor, index: Tensor, flat: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return placed[flat]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _with_zeros(grad)[ctx.saved_tensors[0]], None, None


def _with_zeros(packed: Tensor) -> Tensor:
    """One row more, which padding's index T finds."""
    return torch.cat((packed, packed.new_zeros(1, *packed.shape[1:])))


def block_attention(q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
    """Causal attention inside every sample: q (T, H, K), k and v (T, G, K) -> (T, H*K)."""
    heads, kv_heads = q.shape[1], k.shape[1]
    index = torch.cat([g.flatten() for g in batch.groups])
    gathered: Tensor = Spread.apply(torch.cat((q, k, v), dim=1), index, batch.flat)
    outs = []
    for part, group in zip(gathered.split([g.numel() for g in batch.groups]), batch.groups, strict=True):
        rows = part.view(*group.shape, heads + 2 * kv_heads, -1).transpose(1, 2)
        q_, k_, v_ = rows.split((heads, kv_heads, kv_heads), dim=1)
        repeat = heads // kv_heads
        out = causal(q_, k_.repeat_interleave(repeat, 1), v_.repeat_interleave(repeat, 1))
        outs.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
    collected: Tensor = Collect.apply(torch.cat(outs), index, batch.flat)
    return collected


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (S, H, L, K). Spelled out on a CPU, whose fused kernel has a slow backward."""
    if q.is_cuda:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    length = q.shape[2]
    scores = (q * q.shape[3] ** -0.5) @ k.mT
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1, dtype=q.dtype) @ v


class FeedForward(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.w1 = nn.Linear(arch.hidden, arch.ffn, bias=False)
        self.w3 = nn.Linear(arch.hidden, arch.ffn, bias=False)
        self.w2 = nn.Linear(arch.ffn, arch.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.attention = Attention(arch)
        self.feed_forward = FeedForward(arch)
        self.attention_norm = RMSNorm(arch.hidden, arch.eps)
        self.ffn_norm = RMSNorm(arch.hidden, arch.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, batch)
        return x + self.feed_forward(self.ffn_norm(x))


class Trunk(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(arch.vocab, arch.hidden)
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch.layers))
        self.norm = RMSNorm(arch.hidden, arch.eps)


class DemoModel(nn.Module):
    """The whole model. With `arch.tied` the head is the embedding itself and has no parameter of its own."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.model = Trunk(arch)
        self.output = None if arch.tied else nn.Linear(arch.hidden, arch.vocab, bias=False)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Embeddings and head start equal: copying is easy to learn. What writes to the residual starts at zero."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02 if "tok_embeddings" in name else p.shape[1] ** -0.5 * 0.5)
            if name.endswith(("wo.weight", "w2.weight")):
                p.zero_()
        if self.output is not None:
            self.output.weight.copy_(self.model.tok_embeddings.weight)

    @property
    def head(self) -> Tensor:
        return self.model.tok_embeddings.weight if self.output is None else self.output.weight

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        half = self.arch.head_dim // 2
        freq = self.arch.rope_theta ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
        angle = (positions.float()[:, None] * freq)[:, None]
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states after the final norm, (T, D)."""
        x = self.model.tok_embeddings(batch.tokens) * self.arch.embed_scale
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        cos, sin = self.angles(batch.positions, x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin, batch)
        return self.model.norm(x)

    def losses(self, batch: Batch) -> Tensor:
        """Negative log likelihood of each learnt token, (P), fp32."""
        logits = functional.linear(self(batch)[batch.learn], self.head)
        return functional.cross_entropy(logits.float(), batch.target, reduction="none")
