"""A model with one attention layer that keeps its keys in real pages, and what it must say, computed without pages.

It implements models/contract.py honestly: K and V go through `writes_T` and come back through block tables, so a wrong
block, position or length changes its logits. `reference_logits` is dense causal attention over a whole token list.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenmill.engine.contract import Capacity, KVGroup
from tokenmill.kernels.meta import RowMeta
from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.models.contract import AttentionGroup, ModelSpec
from tokenmill.runner.device import DeviceRunner, DeviceSteps
from tokenmill.runner.lanes import make_lane

VOCAB, WIDTH, BLOCK = 97, 32, 4


class PageKind:
    """Flat fp32 pages with one spare block for writes to -1."""

    name = "test"

    def bytes_per_token(self, num_heads: int, head_dim: int, itemsize: int) -> int:
        return 2 * num_heads * head_dim * itemsize

    def alloc(self, num_blocks: int, shape: KVShape, dtype: torch.dtype, device: torch.device) -> KVPages:
        size = (num_blocks + 1, shape.block_tokens, shape.num_heads, shape.head_dim)
        # NaN, so that a read of what was never written shows.
        return KVPages(self, shape, {n: torch.full(size, math.nan, dtype=dtype, device=device) for n in ("k", "v")})


class TinyModel:
    """hidden = x + attention(x); logits = hidden @ head. `bad_token`: its embedding is NaN."""

    def __init__(self, device: torch.device, seed: int = 0, bad_token: int | None = None):
        make = torch.Generator().manual_seed(seed)
        self.table, self.head = torch.randn(VOCAB, WIDTH, generator=make), torch.randn(WIDTH, VOCAB, generator=make)
        self.qkv = torch.randn(WIDTH, 3 * WIDTH, generator=make) / math.sqrt(WIDTH)
        if bad_token is not None:
            self.table[bad_token] = math.nan
        self.table, self.head, self.qkv = (t.to(device) for t in (self.table, self.head, self.qkv))
        self.spec = ModelSpec(
            family="tiny", vocab_size=VOCAB, hidden_size=WIDTH, num_layers=1, num_heads=1, num_kv_heads=1,
            head_dim=WIDTH, max_model_tokens=256, dtype="float32", groups=(AttentionGroup("all", (0,)),), rope=None,
            linear_params=0, other_params=0, eos_ids=(), bos_id=None,
        )

    vision = None

    def embed(self, ids_T: Tensor) -> Tensor:
        return self.table[ids_T]

    def pool(self, hidden_RD: Tensor) -> Tensor:
        return hidden_RD.float()

    def rope(self, bases_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """A rotation-free position code: sin and cos that forward adds to the embedding, shifted by the slot's base."""
        places = torch.arange(1, WIDTH // 2 + 1, device=positions_T.device)
        angle = positions_T[:, None].float() / places + bases_T[:, None]
        return angle.cos(), angle.sin()

    def logn(self, positions_T: Tensor) -> Tensor | None:
        return None

    def forward(
        self, ids_T: Tensor, rows: RowMeta, caches: tuple[KVPages, ...], embeds_TD: Tensor | None = None
    ) -> Tensor:
        x = (self.embed(ids_T) if embeds_TD is None else embeds_TD) + torch.cat([rows.cos_TK, rows.sin_TK], -1)
        q, k, v = (x @ self.qkv).chunk(3, -1)
        planes = {name: plane.flatten(0, 1) for name, plane in caches[0].planes.items()}
        planes["k"][rows.writes_T[0], 0], planes["v"][rows.writes_T[0], 0] = k, v
        places = torch.arange(rows.max_context, device=ids_T.device)
        block = rows.tables[0][:, places // BLOCK].long()
        index_RL = block * BLOCK + places % BLOCK
        index_RL = torch.where(places < rows.totals_R[:, None], index_RL, index_RL[:, :1])
        keys, values = planes["k"][index_RL, 0][rows.rows_T.long()], planes["v"][index_RL, 0][rows.rows_T.long()]
        seen = places[None, :] <= rows.positions_T[:, None]
        values = values.masked_fill(~seen[..., None], 0.0)
        scores = torch.einsum("td,tld->tl", q, keys).masked_fill(~seen, -math.inf)
        return x + torch.einsum("tl,tld->td", scores.softmax(-1), values)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        return (hidden_RD @ self.head).float()

    def reference_logits(self, tokens: list[int], base: float = 0.0) -> Tensor:
        """[len(tokens), V] by dense attention, no cache."""
        ids = torch.tensor(tokens)
        code = torch.cat(self.rope(torch.full((len(ids),), base), torch.arange(len(ids))), -1)
        x = self.table[ids] + code
        q, k, v = (x @ self.qkv).chunk(3, -1)
        scores = (q @ k.T).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -math.inf)
        return (x + scores.softmax(-1) @ v) @ self.head


def tiny_capacity(rows: int = 8, blocks: int = 128, tokens: int = 64) -> Capacity:
    group = KVGroup("all", 1, BLOCK, BLOCK * 2 * WIDTH * 4, blocks)
    return Capacity((group,), rows, tokens, 256, VOCAB)


def tiny_runner(
    model: TinyModel | None = None, capacity: Capacity | None = None, device: str = "cpu"
) -> tuple[DeviceRunner, TinyModel]:
    where = torch.device(device)
    model, capacity = model or TinyModel(where), capacity or tiny_capacity()
    pages = PageKind().alloc(capacity.groups[0].num_blocks, KVShape(1, WIDTH, BLOCK), torch.float32, where)
    steps = DeviceSteps(model, capacity, (pages,), where)
    return DeviceRunner(steps, capacity, make_lane(where, 1)), model
