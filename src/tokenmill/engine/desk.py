"""Who waits, who sits, who has ended: the bookkeeping that planning and committing share.

Side effects of `vacate`, in this order: blocks go back (published ones stay cached), the seat is free and its epoch
moves on, the slot is on the list of releases that the next plan carries. So nothing of a sequence is left anywhere once
it has ended, and whatever it still has in flight is dropped by its old epoch.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from tokenmill.engine.contract import I64, Capacity
from tokenmill.engine.images import ImageCache
from tokenmill.engine.sequence import LOGPROBS, STEADY, Sequence
from tokenmill.engine.state import SlotState
from tokenmill.engine.tables import Tables
from tokenmill.types import Finish

by_rank = attrgetter("rank")


@dataclass(slots=True)
class Totals:
    """Counts since start."""

    steps: int = 0
    requests: int = 0
    finished: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Decoders:
    """Slots past their prompt. `special`: rows must be written out; `masked`, `logprobs`: any slot needs them."""

    slots: I64
    special: bool
    masked: bool
    logprobs: bool


class Desk:
    """`prefilling` and `waiting` are in order of rank."""

    def __init__(self, capacity: Capacity, rows: int) -> None:
        self.state = SlotState(rows, capacity.max_model_tokens)
        self.tables = Tables(capacity, rows)
        self.images = ImageCache(capacity)
        self.live: dict[int, Sequence] = {}
        self.ids: set[str] = set()
        self.waiting: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        self.released: list[int] = []
        self.ended: list[tuple[int, Finish, dict[str, Any]]] = []
        self.totals = Totals()
        self._decoding: dict[int, None] = {}
        self._decoders: Decoders | None = None

    def wait(self, seq: Sequence) -> None:
        insort(self.waiting, seq, key=by_rank)

    def sit(self, seq: Sequence) -> int:
        slot = self.state.sit(seq)
        insort(self.prefilling, seq, key=by_rank)
        return slot

    def start_decoding(self, seq: Sequence) -> None:
        self.prefilling.remove(seq)
        self._decoding[seq.slot] = None
        self._decoders = None

    def stop_prefilling(self, seq: Sequence) -> None:
        """The whole prompt is queued and nothing will be drawn."""
        self.prefilling.remove(seq)

    def decoders(self) -> Decoders:
        """Rebuilt only when a sequence has come or gone."""
        if self._decoders is None:
            seqs = [self.state.sequences[slot] for slot in self._decoding]
            wants = [s.steady_want for s in seqs if s is not None]
            self._decoders = Decoders(
                slots=np.fromiter(self._decoding, np.int64, len(self._decoding)),
                special=any(w & ~STEADY for w in wants),
                masked=any(s is not None and s.matcher is not None for s in seqs),
                logprobs=any(w & LOGPROBS for w in wants),
            )
        return self._decoders

    def vacate(self, seq: Sequence) -> None:
        slot = seq.slot
        self.tables.release(slot)
        self.state.leave(slot)
        self.released.append(slot)
        if slot in self._decoding:
            del self._decoding[slot]
            self._decoders = None
        elif seq in self.prefilling:
            self.prefilling.remove(seq)

    def preempt(self, seq: Sequence) -> None:
        """Back into the line with its tokens; what it gathered is run again, what is in flight is dropped."""
        self.vacate(seq)
        seq.gathered = {}
        self.totals.preemptions += 1
        self.wait(seq)

    def retire(self, seq: Sequence) -> None:
        """Removes every trace of a sequence that is over."""
        if seq.slot >= 0:
            self.vacate(seq)
        else:
            self.waiting.remove(seq)
        seq.ended = True
        del self.live[seq.handle]
        self.ids.discard(seq.request.id)
        self.totals.finished += 1

    def end(self, seq: Sequence, finish: Finish, **extras: Any) -> None:
        """Retires a sequence outside a commit; the next message to the caller says so."""
        self.retire(seq)
        self.ended.append((seq.handle, finish, extras))
