"""Counters of seated sequences, as numpy arrays by slot: what a steady decode step reads and writes.

Token counts of a slot, with steps under way (a step is planned before the previous one is committed):
known   tokens the host has.
least   tokens there will be once every planned step is committed, if each row draws one.
most    the same if each row draws all its drafts too. A FROM_DEVICE row runs positions up to most - 1 + drafts.
queued  positions that chunks have run or will run; a sequence decodes once queued has reached known.
`epoch` goes up when a slot is left, so that results of its former sequence are recognised and dropped.
"""

from __future__ import annotations

import numpy as np

from tokenmill.engine.contract import I32, I64
from tokenmill.engine.sequence import Sequence

NEVER = np.int64(2**62)
NO_TOKEN = -1


class SlotState:
    """`rows` slots of up to `max_tokens` tokens. Pages of `tokens` that nobody wrote to cost no memory."""

    def __init__(self, rows: int, max_tokens: int) -> None:
        self.rows = rows
        self.tokens: I32 = np.zeros((rows, max_tokens + 1), np.int32)
        self.sequences: list[Sequence | None] = [None] * rows
        self.known: I64 = np.zeros(rows, np.int64)
        self.least: I64 = np.zeros(rows, np.int64)
        self.most: I64 = np.zeros(rows, np.int64)
        self.queued: I64 = np.zeros(rows, np.int64)
        self.limit: I64 = np.zeros(rows, np.int64)
        self.stop_from: I64 = np.zeros(rows, np.int64)
        self.publish_at: I64 = np.full(rows, NEVER)
        self.planned_in: I64 = np.full(rows, -1, np.int64)
        self.handle: I64 = np.zeros(rows, np.int64)
        self.epoch: I32 = np.zeros(rows, np.int32)
        self.stops: I32 = np.full((rows, 1), NO_TOKEN, np.int32)
        self.free: list[int] = list(range(rows - 1, -1, -1))

    @property
    def num_seated(self) -> int:
        return self.rows - len(self.free)

    def sit(self, seq: Sequence) -> int:
        """Gives `seq` a seat; the caller has seen that one is free."""
        slot = self.free.pop()
        count = len(seq.tokens)
        seq.slot = slot
        self.sequences[slot] = seq
        self.tokens[slot, :count] = seq.tokens
        self.known[slot] = self.least[slot] = self.most[slot] = count
        self.limit[slot] = seq.limit_tokens
        self.handle[slot] = seq.handle
        self.publish_at[slot] = NEVER
        stop = seq.request.stop
        self.stop_from[slot] = seq.prompt_tokens + stop.min_new_tokens
        if len(stop.token_ids) > self.stops.shape[1]:
            wider = len(stop.token_ids) - self.stops.shape[1]
            self.stops = np.pad(self.stops, ((0, 0), (0, wider)), constant_values=NO_TOKEN)
        self.stops[slot] = NO_TOKEN
        self.stops[slot, : len(stop.token_ids)] = stop.token_ids
        return slot

    def leave(self, slot: int) -> None:
        """Frees the seat; the sequence keeps its known tokens."""
        seq = self.sequences[slot]
        assert seq is not None
        seq.tokens = self.tokens[slot, : self.known[slot]].copy()
        seq.slot = -1
        self.sequences[slot] = None
        self.epoch[slot] += 1
        self.publish_at[slot] = NEVER
        self.free.append(slot)

    def known_tokens(self, slot: int) -> I32:
        """A view of what the host knows of a slot's tokens."""
        view: I32 = self.tokens[slot, : self.known[slot]]
        return view
