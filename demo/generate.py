"""Greedy answers from a training model, many prompts at once, with a KV cache: how training judges itself.

Contract: `answers(model, prompts, limits)` gives, for each prompt of token ids, the new ids without the stop id, and
whether one came. It is code of its own beside the engine's, on dense caches, so that the two can be held together.

Shapes: S prompts, L padded length, n new positions, H query heads, G kv heads, K head dim, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from demo.model import Attention, DemoModel, rotate

Answered = tuple[list[int], bool]


@dataclass(frozen=True, slots=True)
class Limits:
    stop_ids: frozenset[int]
    max_new_tokens: int
    batch: int = 128


@dataclass
class Cache:
    """Keys and values (layers, S, G, L, K) of padded rows; `real_SL` tells padding, `used` how many columns hold."""

    keys: Tensor
    values: Tensor
    real_SL: Tensor
    used: int = 0


def make_cache(model: DemoModel, rows: int, length: int) -> Cache:
    a, like = model.arch, model.head
    shape = (a.layers, rows, a.kv_heads, length, a.head_dim)
    real = torch.zeros(rows, length, dtype=torch.bool, device=like.device)
    return Cache(like.new_zeros(shape), like.new_zeros(shape), real)


def attend(layer: Attention, number: int, x_SnD: Tensor, angles: tuple[Tensor, Tensor], cache: Cache) -> Tensor:
    """Attention of the n newest columns over all columns so far; writes theirs to the cache."""
    a = layer.arch
    rows, new, per = x_SnD.shape[0], x_SnD.shape[1], a.heads // a.kv_heads
    grouped = layer.wqkv(x_SnD).view(rows * new, a.kv_heads, per + 2, a.head_dim)
    q = rotate(grouped[:, :, :per].reshape(rows * new, a.heads, a.head_dim), *angles)
    k, v = rotate(grouped[:, :, per], *angles), grouped[:, :, per + 1]
    start, end = cache.used, cache.used + new
    cache.keys[number, :, :, start:end] = k.view(rows, new, a.kv_heads, a.head_dim).transpose(1, 2)
    cache.values[number, :, :, start:end] = v.view(rows, new, a.kv_heads, a.head_dim).transpose(1, 2)
    keys = cache.keys[number, :, :, :end].repeat_interleave(per, 1)
    values = cache.values[number, :, :, :end].repeat_interleave(per, 1)
    past = torch.ones(new, end, dtype=torch.bool, device=q.device).tril(start)
    # A padding query sees itself, so that its softmax is not empty; nothing ever looks at what it yields.
    itself = torch.eye(new, end, dtype=torch.bool, device=q.device).roll(start, 1)
    mask = (past & cache.real_SL[:, None, :end]) | itself
    q = q.view(rows, new, a.heads, a.head_dim).transpose(1, 2)
    out = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask[:, None])
    return layer.wo(out.transpose(1, 2).flatten(2))


def forward(model: DemoModel, tokens_Sn: Tensor, positions_Sn: Tensor, cache: Cache) -> Tensor:
    """Logits (S, V) of the last column; the cache grows by n columns."""
    x = model.model.tok_embeddings(tokens_Sn) * model.arch.embed_scale
    angles = model.angles(positions_Sn.flatten(), x.dtype)
    for number, layer in enumerate(model.model.layers):
        x = x + attend(layer.attention, number, layer.attention_norm(x), angles, cache)
        x = x + layer.feed_forward(layer.ffn_norm(x))
    cache.used += tokens_Sn.shape[1]
    return functional.linear(model.model.norm(x[:, -1]), model.head)


def answer_batch(model: DemoModel, prompts: list[list[int]], limits: Limits) -> list[Answered]:
    """Prompts are padded on the left, so that all rows grow at the same column."""
    device, rows, width = model.head.device, len(prompts), max(map(len, prompts))
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    tokens = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    columns = torch.arange(width, device=device)
    cache = make_cache(model, rows, width + limits.max_new_tokens)
    cache.real_SL[:, :width] = columns >= width - lengths[:, None]
    cache.real_SL[:, width:] = True
    positions = (columns - (width - lengths[:, None])).clamp(min=0)
    stops = torch.tensor(sorted(limits.stop_ids), device=device)
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    drawn = []
    for step in range(limits.max_new_tokens):
        tokens = forward(model, tokens, positions, cache).argmax(-1, keepdim=True)
        drawn.append(tokens)
        done |= torch.isin(tokens[:, 0], stops)
        positions = (lengths + step)[:, None]
        if done.all():
            break
    return [until_stop(ids, limits.stop_ids) for ids in torch.cat(drawn, 1).tolist()]


def until_stop(ids: list[int], stop_ids: frozenset[int]) -> Answered:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    return (ids, False) if end is None else (ids[:end], True)


@torch.inference_mode()
def answers(model: DemoModel, prompts: list[list[int]], limits: Limits) -> list[Answered]:
    """Answers in the order of the prompts; those of similar length share a batch."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Answered] = {}
    for start in range(0, len(order), limits.batch):
        part = order[start : start + limits.batch]
        found |= dict(zip(part, answer_batch(model, [prompts[i] for i in part], limits), strict=True))
    return [found[i] for i in range(len(prompts))]
