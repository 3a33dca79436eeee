"""One sequence alone on its own pages: a model run without a runner, for parity checks and calibration.

T packed tokens of this sequence. Its blocks lie in reverse order, so that a model that ignored its table would show.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tokenmill.kernels.meta import ChunkRow, RowMeta
from tokenmill.kv.contract import KVShape
from tokenmill.kv.layout import kind_of
from tokenmill.models.decoder import Decoder

BLOCK_TOKENS = 16


class Solo:
    """Room for `prompt_tokens` tokens of one sequence; every `rows` call makes it that much longer."""

    def __init__(self, model: Decoder, prompt_tokens: int, kv: str = "auto"):
        spec, device = model.spec, model.embedding.table_VD.device
        blocks = -(-prompt_tokens // BLOCK_TOKENS)
        shape, kind = KVShape(spec.num_kv_heads, spec.head_dim, BLOCK_TOKENS), kind_of(spec.latent, kv)
        self.model = model
        self.caches = tuple(kind.alloc(blocks, shape, model.dtype, device) for _ in range(spec.num_layers))
        self.table_1B = torch.arange(blocks - 1, -1, -1, dtype=torch.int32, device=device)[None]
        self.base = spec.rope.for_prompt(prompt_tokens) if spec.rope else 0.0
        self.length = 0

    def rows(self, num_tokens: int, turns_3T: Tensor | None = None) -> RowMeta:
        """The next `num_tokens` tokens as one row, turned by their positions or by what is given."""
        start, total = self.length, self.length + num_tokens
        self.length = total
        device = self.table_1B.device
        ints = partial(torch.tensor, dtype=torch.int32, device=device)
        positions_T = torch.arange(start, total, dtype=torch.int32, device=device)
        blocks_T = self.table_1B[0, positions_T.long() // BLOCK_TOKENS].long()
        turned = positions_T if turns_3T is None else turns_3T.to(device)
        cos_TK, sin_TK = self.model.rope(torch.full((num_tokens,), self.base, device=device), turned)
        single = num_tokens == 1
        return RowMeta(
            starts_R1=ints([0, num_tokens]),
            totals_R=ints([total]),
            slots_R=ints([0]),
            rows_T=torch.zeros_like(positions_T),
            positions_T=positions_T,
            tables=(self.table_1B,) * len(self.model.spec.groups),
            writes_T=(blocks_T * BLOCK_TOKENS + positions_T % BLOCK_TOKENS,) * len(self.model.spec.groups),
            num_single=ints([int(single)]),
            cos_TK=cos_TK,
            sin_TK=sin_TK,
            logn_T=self.model.logn(positions_T),
            max_row_tokens=num_tokens,
            max_context=total,
            all_single=single,
            chunks=() if single else (ChunkRow(0, 0, num_tokens, total),),
        )

    def logits(self, ids_T: Tensor, chunk: int | None = None) -> Tensor:
        """fp32 [T, V] of the next tokens, run in chunks of at most `chunk` tokens."""
        return self.model.logits(self.hidden(ids_T, chunk))

    def hidden(self, ids_T: Tensor, chunk: int | None = None) -> Tensor:
        """Hidden states [T, D] behind the final norm, run in chunks of at most `chunk` tokens."""
        parts = torch.split(ids_T, chunk or len(ids_T))
        return torch.cat([self.model.forward(part, self.rows(len(part)), self.caches) for part in parts])
