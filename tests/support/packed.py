"""A runner in small, for tests of models and ops: slots with block tables on real pages, steps of mixed rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenmill.kernels.meta import ChunkRow, RowMeta
from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import kind_of


@dataclass
class Slot:
    """One sequence: its tokens so far and the base its prompt got."""

    length: int = 0
    base: float = 0.0


@dataclass
class Packed:
    """Rows of a model on its own pages. Blocks are dealt out of order, so that a wrong table shows.

    `host_chunks`: tell the ops the chunk rows, as an eager runner does.
    """

    model: object
    num_slots: int = 8
    max_tokens: int = 512
    block_tokens: int = 16
    kv: str = "auto"
    host_chunks: bool = True
    caches: tuple[KVPages, ...] = ()
    slots: list[Slot] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = self.model.spec
        blocks = self.num_slots * self.max_tokens // self.block_tokens
        shape = KVShape(spec.num_kv_heads, spec.head_dim, self.block_tokens)
        kind = kind_of(spec.latent, self.kv)
        dtype = self.model.dtype
        self.caches = tuple(kind.alloc(blocks, shape, dtype, torch.device("cpu")) for _ in range(spec.num_layers))
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(7))
        self.tables = order.view(self.num_slots, -1).int()
        self.slots = [Slot() for _ in range(self.num_slots)]

    def start(self, slot: int, prompt_tokens: int) -> None:
        rule = self.model.spec.rope
        self.slots[slot] = Slot(0, rule.for_prompt(prompt_tokens) if rule else 0.0)

    def step(self, work: list[tuple[int, list[int]]]) -> list[Tensor]:
        """Runs (slot, tokens) rows as one step; fp32 logits [tokens, V] of each, in the order given."""
        ordered = sorted(range(len(work)), key=lambda i: len(work[i][1]) > 1)
        rows = [work[i] for i in ordered]
        hidden_TD = self.model.forward(self._ids(rows), self.meta(rows), self.caches)
        for slot, tokens in rows:
            self.slots[slot].length += len(tokens)
        parts = self.model.logits(hidden_TD).split([len(tokens) for _, tokens in rows])
        return [parts[ordered.index(i)] for i in range(len(work))]

    @staticmethod
    def _ids(rows: list[tuple[int, list[int]]]) -> Tensor:
        return torch.tensor([token for _, tokens in rows for token in tokens])

    def meta(self, rows: list[tuple[int, list[int]]]) -> RowMeta:
        counts = [len(tokens) for _, tokens in rows]
        totals = [self.slots[slot].length + n for (slot, _), n in zip(rows, counts, strict=True)]
        starts = [sum(counts[:i]) for i in range(len(rows) + 1)]
        rows_T = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
        positions_T = torch.cat([torch.arange(t - n, t) for t, n in zip(totals, counts, strict=True)])
        slots_R = torch.tensor([slot for slot, _ in rows])
        bases_T = torch.tensor([self.slots[slot].base for slot, _ in rows])[rows_T]
        cos_TK, sin_TK = self.model.rope(bases_T, positions_T)
        blocks_T = self.tables[slots_R[rows_T], positions_T // self.block_tokens].long()
        chunks = tuple(
            ChunkRow(i, starts[i], counts[i], totals[i]) for i in range(len(rows)) if counts[i] > 1
        )
        return RowMeta(
            starts_R1=torch.tensor(starts, dtype=torch.int32),
            totals_R=torch.tensor(totals, dtype=torch.int32),
            slots_R=slots_R.int(),
            rows_T=rows_T.int(),
            positions_T=positions_T.int(),
            tables=(self.tables[slots_R],) * len(self.model.spec.groups),
            writes_T=(blocks_T * self.block_tokens + positions_T % self.block_tokens,) * len(self.model.spec.groups),
            num_single=torch.tensor([sum(n == 1 for n in counts)], dtype=torch.int32),
            cos_TK=cos_TK,
            sin_TK=sin_TK,
            logn_T=self.model.logn(positions_T),
            max_row_tokens=max(counts),
            max_context=max(totals),
            all_single=max(counts) == 1,
            chunks=chunks if self.host_chunks else None,
        )
