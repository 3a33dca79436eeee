"""One step's rows as device tensors, and the carrier between blocks. Seam between runner, layers and kernels.

Shapes: T packed tokens, R rows, H query heads, G kv heads, K head dim, D hidden, B blocks of a row, S tokens per block.
One-token rows come first. Tensors may be longer than the step needs (graph buckets): rows past `num_rows` have
total 0, tokens past `num_tokens` have position 0 and write index -1 and their results are never read. Nothing here is
read on the host inside a step except the plain ints, which are the bucket's bounds, not the step's lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A row of more than one token, in host numbers: its index, first packed token, tokens and context at most."""

    row: int
    start: int
    num_tokens: int
    context: int


@dataclass(slots=True)
class RowMeta:
    """Rows of one step.

    starts_R1 int32 [R + 1]: first token of each row in the packed order, last = tokens in use.
    totals_R int32: tokens of the row's context including this step's; a row's tokens are its last ones.
    slots_R int32: the slot of each row. rows_T int32: the row of each token. positions_T int32.
    tables int32 [R, B] per KV group: block of each S positions. writes_T int64 per group: block * S + offset where the
    token's K and V go, -1 where nowhere. num_single int32 [1]: how many leading rows have one token.
    cos_TK, sin_TK: rotation of each token, [T, K // 2] fp32, from the slot's rope base (already scaled).
    logn_T fp32 or None: factor on q past the trained length.
    max_row_tokens, max_context: bounds of this bucket. all_single: every row has one token (a fact of the bucket).
    chunks: rows of more than one token, where the runner knows them on the host (eager steps); rows before the first of
    them have one token or none. None: ops pad every row to `max_row_tokens`, which captures but costs memory.
    ends_T int32: the last place of its row that each token sees, at or ahead of its own position and within the row's
    context; a window still ends what it sees behind. None: every token sees up to itself.
    """

    starts_R1: Tensor
    totals_R: Tensor
    slots_R: Tensor
    rows_T: Tensor
    positions_T: Tensor
    tables: tuple[Tensor, ...]
    writes_T: tuple[Tensor, ...]
    num_single: Tensor
    cos_TK: Tensor
    sin_TK: Tensor
    logn_T: Tensor | None
    max_row_tokens: int
    max_context: int
    all_single: bool
    chunks: tuple[ChunkRow, ...] | None = None
    ends_T: Tensor | None = None


@dataclass(slots=True)
class Stream:
    """Between block ops: the residual [T, D] and whatever the backend left for the next block (None: nothing).

    `carry` is private to the backend that wrote it: a normed tensor, row sums of squares, a quantized copy.
    """

    residual_TD: Tensor
    carry: Any = None
