"""What runs in the next step. Order: running rows, then prompts under way, then the line, under one budget.

Nothing here waits for the step under way: lengths are bounds (`SlotState`), and blocks are reserved for the bound.
Who lacks a block takes it from the youngest that is not in this plan and younger than itself; who finds none sits the
step out. The oldest always finds one, so work always goes on, and a step that is wholly empty means that a result is
due or nothing can run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tokenmill.engine.budget import Budget
from tokenmill.engine.contract import I32, I64, NO_I32, Capacity, Row, SlotInit, StepPlan
from tokenmill.engine.desk import Decoders, Desk
from tokenmill.engine.images import embeds_of, overlapping, shift_of, turns_of, uncut
from tokenmill.engine.sequence import LOGPROBS, OVER_PROMPT, PROMPT_LOGPROBS, STEADY, Sequence
from tokenmill.engine.state import NEVER
from tokenmill.engine.tables import Hit
from tokenmill.types import Want


@dataclass(frozen=True, slots=True)
class Limits:
    """A step's bounds. `itl_target_us` None: tokens only."""

    step_tokens: int
    itl_target_us: float | None
    prefix_caching: bool


@dataclass(slots=True)
class Part:
    """A chunk of a plan: whose, in which epoch, and whether it was the last of the prompt."""

    seq: Sequence
    slot: int
    epoch: int
    is_last: bool


@dataclass(slots=True)
class Flight:
    """What commit must know of a planned step. `bounds`: the most tokens each FROM_DEVICE row may draw; None: 1."""

    parts: list[Part] = field(default_factory=list)
    bounds: dict[int, int] | None = None


@dataclass(slots=True)
class Draft:
    """A plan in the making."""

    budget: Budget
    decode_slots: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    rows: list[Row] = field(default_factory=list)
    new_slots: list[SlotInit] = field(default_factory=list)
    masked: list[int] = field(default_factory=list)
    want_logprobs: I32 = field(default_factory=lambda: NO_I32)
    flight: Flight = field(default_factory=Flight)


class Planner:
    def __init__(self, desk: Desk, capacity: Capacity, limits: Limits) -> None:
        self.desk = desk
        self.state = desk.state
        self.tables = desk.tables
        self.capacity = capacity
        self.limits = limits
        self.least_chunk = min(self.tables.step, limits.step_tokens)
        self.step = 0
        self._from_device: dict[tuple[int, int, int], Row] = {}

    def plan(self) -> tuple[StepPlan, Flight]:
        self.step += 1
        draft = Draft(Budget(self.limits.step_tokens, self.least_chunk))
        self._decodes(draft)
        for seq in list(self.desk.prefilling):
            if seq.slot >= 0:
                self._chunk(seq, draft)
        self._admissions(draft)
        return self._finished(draft), draft.flight

    def _finished(self, draft: Draft) -> StepPlan:
        released, self.desk.released = self.desk.released, []
        encode, dropped = self.desk.images.changes()
        return StepPlan(
            step=self.step,
            decode_slots=draft.decode_slots.astype(np.int32),
            rows=draft.rows,
            new_slots=draft.new_slots,
            new_blocks=self.tables.changes(),
            released_slots=np.asarray(released, np.int32) if released else NO_I32,
            dropped_media=dropped,
            encode=encode,
            masked=np.asarray(draft.masked, np.int32) if draft.masked else NO_I32,
            want_logprobs=draft.want_logprobs,
        )

    # ---- running rows

    def _decodes(self, draft: Draft) -> None:
        decoders = self.desk.decoders()
        state, slots = self.state, decoders.slots
        if not len(slots):
            return
        most = state.most[slots]
        ready = most < state.limit[slots]
        if not ready.all():
            slots, most = slots[ready], most[ready]
        if self.tables.windowed:
            self._drop_behind(slots)
        drafts = self._drafts(slots, most) if self.capacity.max_drafts else None
        if not self.tables.cover(slots, most if drafts is None else most + drafts):
            slots = self._squeeze(slots)
            drafts = None if drafts is None else np.zeros(len(slots), np.int64)
        state.planned_in[slots] = self.step
        state.least[slots] += 1
        state.most[slots] += 1 if drafts is None else drafts + 1
        tokens = len(slots) if drafts is None else len(slots) + int(drafts.sum())
        if self.limits.itl_target_us is not None and len(slots):
            context = int(state.most[slots].sum())
            draft.budget.limit_time(self.limits.itl_target_us, self.capacity.cost, tokens, context)
        draft.budget.tokens -= tokens
        self._write_decodes(draft, decoders, slots, drafts)

    def _drop_behind(self, slots: I64) -> None:
        """What lies behind a row's window goes back, but not before its prompt's blocks are indexed: they may be."""
        if self.limits.prefix_caching:
            slots = slots[self.state.publish_at[slots] != NEVER]
        self.tables.drop_behind(slots, self.state.least[slots] - 1)

    def _drafts(self, slots: I64, most: I64) -> I64:
        """How many drafts each row may bring: within its limit, the budget, and none under a grammar."""
        share = min(self.capacity.max_drafts, self.limits.step_tokens // max(len(slots), 1) - 1)
        drafts: I64 = np.minimum(self.state.limit[slots] - most - 1, share)
        if self.desk.decoders().masked:
            free = [self._sequence(slot).matcher is None for slot in slots.tolist()]
            drafts = np.where(free, drafts, 0)
        return drafts

    def _squeeze(self, slots: I64) -> I64:
        """Too few blocks for all: the oldest first, without drafts, at the expense of the youngest."""
        kept = []
        for seq in sorted((self._sequence(slot) for slot in slots.tolist()), key=lambda s: s.rank):
            if seq.slot < 0:
                continue
            one = np.asarray([seq.slot])
            while not (covered := self.tables.cover(one, self.state.most[one])):
                if not self._preempt_younger(seq):
                    break
            if covered:
                self.state.planned_in[seq.slot] = self.step
                kept.append(seq.slot)
        return np.asarray(kept, np.int64)

    def _preempt_younger(self, seq: Sequence) -> bool:
        """Takes the seat of the youngest that is younger than `seq` and not in this plan; False where there is none."""
        rivals = [
            other
            for other in self.state.sequences
            if other is not None and other.rank > seq.rank and self.state.planned_in[other.slot] != self.step
        ]
        if not rivals:
            return False
        self.desk.preempt(max(rivals, key=lambda s: s.rank))
        return True

    def _sequence(self, slot: int) -> Sequence:
        seq = self.state.sequences[slot]
        assert seq is not None
        return seq

    def _write_decodes(self, draft: Draft, decoders: Decoders, slots: I64, drafts: I64 | None) -> None:
        """Steady slots stay an array; rows that want more, or bring drafts, are written out."""
        if decoders.masked:
            draft.masked += [slot for slot in slots.tolist() if self._sequence(slot).matcher is not None]
        if drafts is None and not decoders.special:
            draft.decode_slots = slots
        else:
            self._write_rows(draft, slots, drafts)
        if decoders.logprobs:
            steady = draft.decode_slots.tolist()
            wanting = [s for s in steady if self._sequence(s).steady_want & LOGPROBS]
            draft.want_logprobs = np.asarray(wanting, np.int32)

    def _write_rows(self, draft: Draft, slots: I64, drafts: I64 | None) -> None:
        steady: list[int] = []
        draft.flight.bounds = {}
        for slot, extra in zip(slots.tolist(), [0] * len(slots) if drafts is None else drafts.tolist(), strict=True):
            want = self._sequence(slot).steady_want
            if extra == 0 and not want & ~STEADY:
                steady.append(slot)
                continue
            draft.flight.bounds[slot] = 1 + extra
            draft.rows.append(self._device_row(slot, 1 + extra, want))
        draft.decode_slots = np.asarray(steady, np.int64)

    def _device_row(self, slot: int, tokens: int, want: int) -> Row:
        """The same few rows come again every step: made once each."""
        key = (slot, tokens, want)
        if key not in self._from_device:
            self._from_device[key] = Row(slot, tokens, None, 0, Want(want))
        return self._from_device[key]

    # ---- prompts

    def _chunk(self, seq: Sequence, draft: Draft) -> None:
        """The next piece of a prompt, as long as budget and blocks allow."""
        state, slot = self.state, seq.slot
        start, total = int(state.queued[slot]), int(state.known[slot])
        count = self._whole(seq, start, draft.budget.chunk(total - start, start), draft.budget.tokens)
        if count <= 0:
            return
        one = np.asarray([slot])
        if self.tables.windowed:
            self.tables.drop_behind(one, np.asarray([start]))
        while (fits := self._whole(seq, start, count, self.tables.room(slot) - start)) <= 0:
            if not self._preempt_younger(seq):
                return
        count = self._up_to_images(seq, start, fits)
        if count <= 0:
            return
        self.tables.cover(one, np.asarray([start + count]))
        state.planned_in[slot] = self.step
        state.queued[slot] = start + count
        draft.budget.spend(count, start)
        self._write_chunk(seq, draft, start, count)

    def _whole(self, seq: Sequence, start: int, wanted: int, most: int) -> int:
        """How much of a chunk of `wanted` fits into `most` tokens. One that would end within an image whose tokens see
        each other ends behind it if that fits, whatever the time it takes, else before it."""
        count = min(wanted, most)
        return uncut(seq.request.media, start, count, most) if self.capacity.ahead and count > 0 else count

    def _up_to_images(self, seq: Sequence, start: int, count: int) -> int:
        """How much of a chunk may run: up to the first image for which the step's other images leave no room."""
        for image in overlapping(seq.request.media, start, start + count):
            if not self.desk.images.claim(image, self.step):
                return image.offset - start
        return count

    def _write_chunk(self, seq: Sequence, draft: Draft, start: int, count: int) -> None:
        state, slot = self.state, seq.slot
        end, total = start + count, int(state.known[slot])
        is_last = end == total
        want = seq.chunk_want(is_last)
        tokens = state.tokens[slot, start:end].copy()
        targets = self._targets(seq, start, end) if want & PROMPT_LOGPROBS else None
        media = seq.request.media
        embeds, turns = (embeds_of(media, start, end), turns_of(media, start, end)) if media else ((), None)
        draft.rows.append(Row(slot, count, tokens, start, Want(want), targets, embeds, turns))
        draft.flight.parts.append(Part(seq, slot, int(state.epoch[slot]), is_last))
        if not is_last:
            return
        if not seq.draws:
            self.desk.stop_prefilling(seq)
            return
        if seq.matcher is not None:
            draft.masked.append(slot)
        state.least[slot] = state.most[slot] = total + 1
        self.desk.start_decoding(seq)

    @staticmethod
    def _targets(seq: Sequence, start: int, end: int) -> I32:
        """The prompt token after each position; the last has none."""
        targets = np.full(end - start, -1, np.int32)
        following = seq.tokens[start + 1 : min(end + 1, seq.prompt_tokens)]
        targets[: len(following)] = following
        return targets

    # ---- the line

    def _admissions(self, draft: Draft) -> None:
        if not self.desk.waiting or not self.state.free:
            return
        reserved = self._reserved()
        for seq in [s for s in self.desk.waiting if not s.waits_for_grammar]:
            if not self.state.free or draft.budget.chunk(1, 0) <= 0 or seq.tried_at == self.tables.version:
                return
            hit = self._find_hit(seq)
            upto = min(len(seq.tokens) + 1, seq.limit_tokens)
            if not self.tables.fits(hit, upto, reserved):
                seq.tried_at = self.tables.version
                return
            self._admit(seq, hit, draft)
            for group in self.tables.groups:
                reserved[group.index] += self._owed(seq, group.index)

    def _reserved(self) -> list[int]:
        """Blocks per group that seated sequences will soon need: one a running row, and the rest of each prompt."""
        running = len(self.desk.decoders().slots)
        return [
            running + sum(self._owed(seq, group.index) for seq in self.desk.prefilling)
            for group in self.tables.groups
        ]

    def _owed(self, seq: Sequence, index: int) -> int:
        group = self.tables.groups[index]
        upto = min(int(self.state.known[seq.slot]) + 1, seq.limit_tokens)
        return group.owed(upto, int(group.have[seq.slot]), int(group.first[seq.slot]))

    def _find_hit(self, seq: Sequence) -> Hit:
        """Positions whose values are wanted must run: no hit for those."""
        if not self.limits.prefix_caching or seq.over_prompt & OVER_PROMPT:
            return self.tables.no_hit()
        return self.tables.find(seq)

    def _admit(self, seq: Sequence, hit: Hit, draft: Draft) -> None:
        desk, state = self.desk, self.state
        desk.waiting.remove(seq)
        slot = desk.sit(seq)
        self.tables.adopt(slot, hit)
        state.queued[slot] = hit.tokens
        state.planned_in[slot] = self.step
        if not seq.started:
            seq.started = True
            seq.cached_tokens = hit.tokens
            desk.totals.cached_tokens += hit.tokens
            desk.totals.prompt_tokens += seq.prompt_tokens
        draft.new_slots.append(self._slot_init(seq))
        self._chunk(seq, draft)

    def _slot_init(self, seq: Sequence) -> SlotInit:
        request = seq.request
        return SlotInit(
            slot=seq.slot,
            epoch=int(self.state.epoch[seq.slot]),
            sampling=request.sampling,
            seed=seq.seed,
            prompt_tokens=seq.prompt_tokens,
            rope_base=seq.rope_base,
            turn_shift=shift_of(request.media),
            min_tokens=seq.prompt_tokens + request.stop.min_new_tokens,
            stop_ids=tuple(token for token in request.stop.token_ids if token < self.capacity.vocab_size),
            top_logprobs=request.top_logprobs,
            adapter=request.adapter,
            history=seq.tokens.copy() if request.sampling.needs_history else None,
        )
