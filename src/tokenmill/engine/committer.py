"""What a finished step means: tokens are appended, stop rules applied, full blocks indexed, ended sequences retired.

Results are matched by (slot, epoch): what a sequence drew before it was preempted, aborted or ended is dropped, so a
row that ended under overlap never shows its spare token. A row that drew nothing (logits not finite) ends with an
error and nothing it has not yet published ever is. Blocks of a prompt are indexed once a token was drawn from it:
chunks before the last show no logits to judge by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.engine.contract import I32, I64, Bools, RowExtras, StepOutputs, StepResult
from tokenmill.engine.desk import Desk
from tokenmill.engine.planner import Flight, Part
from tokenmill.engine.sequence import Sequence
from tokenmill.types import Finish

FINISHES = list(Finish)
GOES_ON = -1
STOP, LENGTH, ERROR = (FINISHES.index(finish) for finish in (Finish.STOP, Finish.LENGTH, Finish.ERROR))
NOT_FINITE = "the model's logits were not finite for this request; its answer ends here"
DECODE_ARRAYS = ("logits", "hidden")


@dataclass(slots=True)
class Drawn:
    """A step's tokens of sequences that are still there. tokens [n, width], counts of them valid, before -> after."""

    slots: I64
    tokens: I32
    counts: I64
    base: I64
    stopped: Bools


@dataclass(slots=True)
class Outcome:
    """The message in the making: finishes by row, extras by handle, and what ended without a row."""

    finishes: NDArray[np.int8]
    extras: dict[int, dict[str, Any]] = field(default_factory=dict)


class Committer:
    def __init__(self, desk: Desk, prefix_caching: bool) -> None:
        self.desk = desk
        self.state = desk.state
        self.prefix_caching = prefix_caching

    def commit(self, flight: Flight, result: StepResult) -> StepOutputs:
        """Applies a step; the message holds its tokens and whatever ended since the last one."""
        self.desk.totals.steps += 1
        drawn = self._drawn(result)
        self._advance(drawn, flight)
        out = Outcome(self._finishes(drawn))
        handles = self.state.handle[drawn.slots]
        self._chunks(flight.parts, result.extras, out)
        if result.extras:
            self._row_extras(drawn, result, out)
        if self.desk.decoders().masked:
            self._accept(drawn, out)
        self._publish(drawn.slots[drawn.counts > 0])
        self._retire(drawn, out)
        outputs = self._message(drawn, handles, out)
        return merge_ended(outputs, self.desk)

    def _drawn(self, result: StepResult) -> Drawn:
        slots, tokens, counts = result.slots.astype(np.int64), result.tokens, result.counts.astype(np.int64)
        current = self.state.epoch[slots] == result.epochs
        if not current.all():
            slots, tokens, counts = slots[current], tokens[current], counts[current]
        base = self.state.known[slots]
        counts, stopped = self._stops(slots, tokens, counts, base)
        return Drawn(slots, tokens, counts, base, stopped)

    def _stops(self, slots: I64, tokens: I32, counts: I64, base: I64) -> tuple[I64, Bools]:
        """Cuts each row after its first stop token that may count."""
        stops = self.state.stops[slots]
        if tokens.shape[1] == 1:
            hit: Bools = (tokens == stops).any(1) & (base >= self.state.stop_from[slots]) & (counts > 0)
            return counts, hit
        column = np.arange(tokens.shape[1])
        hits = (tokens[:, :, None] == stops[:, None, :]).any(2) & (column < counts[:, None])
        hits &= base[:, None] + column >= self.state.stop_from[slots][:, None]
        stopped: Bools = hits.any(1)
        return np.where(stopped, hits.argmax(1) + 1, counts), stopped

    def _advance(self, drawn: Drawn, flight: Flight) -> None:
        """Appends tokens; turns bounds into facts where a row could have drawn more."""
        state, slots = self.state, drawn.slots
        if drawn.tokens.shape[1] == 1:
            state.tokens[slots, drawn.base] = drawn.tokens[:, 0]
        else:
            rows, columns = np.nonzero(np.arange(drawn.tokens.shape[1]) < drawn.counts[:, None])
            state.tokens[slots[rows], drawn.base[rows] + columns] = drawn.tokens[rows, columns]
        state.known[slots] = drawn.base + drawn.counts
        self.desk.totals.output_tokens += int(drawn.counts.sum())
        if flight.bounds is not None:
            bounds = np.asarray([flight.bounds.get(slot, 1) for slot in slots.tolist()], np.int64)
            state.least[slots] += drawn.counts - 1
            state.most[slots] += drawn.counts - bounds

    def _finishes(self, drawn: Drawn) -> NDArray[np.int8]:
        finishes = np.full(len(drawn.slots), GOES_ON, np.int8)
        finishes[self.state.known[drawn.slots] >= self.state.limit[drawn.slots]] = LENGTH
        finishes[drawn.stopped] = STOP
        finishes[drawn.counts == 0] = ERROR
        return finishes

    def _sequence(self, slot: int) -> Sequence:
        seq = self.state.sequences[slot]
        assert seq is not None
        return seq

    # ---- what few rows have

    def _chunks(self, parts: list[Part], extras: dict[tuple[int, int], RowExtras], out: Outcome) -> None:
        """Gathers prompt arrays; a last chunk hands them over, with the first token or as the whole answer."""
        for part in parts:
            seq, key = part.seq, (part.slot, part.epoch)
            if seq.ended or seq.slot != part.slot or self.state.epoch[part.slot] != part.epoch:
                continue
            own = extras.get(key)
            if own is not None and not seq.passed:
                seq.gather(own)
            if part.is_last:
                self._pass_prompt(seq, own, out)

    def _pass_prompt(self, seq: Sequence, own: RowExtras | None, out: Outcome) -> None:
        if self.prefix_caching and seq.draws:
            self.state.publish_at[seq.slot] = 0
        given: dict[str, Any] = {}
        if not seq.passed:
            given = {**seq.pour(), "cached_tokens": seq.cached_tokens}
            seq.passed = True
        elif own is not None:
            parts = {name: getattr(own, name) for name in DECODE_ARRAYS}
            given = {name: part[-1:] for name, part in parts.items() if part is not None}
        out.extras.setdefault(seq.handle, {}).update(given)
        if not seq.draws:
            self._end_prompt_only(seq, out)

    def _end_prompt_only(self, seq: Sequence, out: Outcome) -> None:
        given = out.extras.pop(seq.handle)
        if any(np.isnan(part).any() for part in given.values() if isinstance(part, np.ndarray)):
            self.desk.images.forget(seq.request.media)
            self.desk.end(seq, Finish.ERROR, error=NOT_FINITE)
        else:
            self.desk.end(seq, Finish.LENGTH, **given)

    def _row_extras(self, drawn: Drawn, result: StepResult, out: Outcome) -> None:
        """Log-probabilities of drawn tokens, and arrays of decode rows."""
        for slot, count in zip(drawn.slots.tolist(), drawn.counts.tolist(), strict=True):
            own = result.extras.get((slot, int(self.state.epoch[slot])))
            if own is None:
                continue
            given = out.extras.setdefault(int(self.state.handle[slot]), {})
            for name in ("logprobs", "top_ids", "top_logprobs"):
                part = getattr(own, name)
                if part is not None:
                    given[name] = part[:count]
            if "cached_tokens" not in given:
                for name in DECODE_ARRAYS:
                    part = getattr(own, name)
                    if part is not None and name not in given:
                        given[name] = part[:count]

    def _accept(self, drawn: Drawn, out: Outcome) -> None:
        """Moves grammars on; one that refuses or fails ends its own request only."""
        for row, slot in enumerate(drawn.slots.tolist()):
            seq = self._sequence(slot)
            if seq.matcher is None or out.finishes[row] in (STOP, ERROR):
                continue
            error = accept_all(seq, drawn.tokens[row, : drawn.counts[row]])
            if error is not None:
                out.finishes[row] = ERROR
                out.extras.setdefault(seq.handle, {})["error"] = error

    # ---- blocks and seats

    def _publish(self, slots: I64) -> None:
        due = slots[self.state.known[slots] >= self.state.publish_at[slots]]
        for slot in due.tolist():
            tokens = self.state.known_tokens(slot)
            self.state.publish_at[slot] = self.desk.tables.publish(slot, self._sequence(slot), tokens)

    def _retire(self, drawn: Drawn, out: Outcome) -> None:
        for row in (out.finishes != GOES_ON).nonzero()[0].tolist():
            seq = self._sequence(int(drawn.slots[row]))
            if drawn.counts[row] == 0:
                out.extras[seq.handle] = {"error": NOT_FINITE}
                self.desk.images.forget(seq.request.media)
            self.desk.retire(seq)

    def _message(self, drawn: Drawn, handles: I64, out: Outcome) -> StepOutputs:
        if drawn.tokens.shape[1] == 1:
            tokens = drawn.tokens[:, 0][drawn.counts > 0]
        else:
            tokens = drawn.tokens[np.arange(drawn.tokens.shape[1]) < drawn.counts[:, None]]
        return StepOutputs(handles, drawn.counts.astype(np.int32), tokens, out.finishes, out.extras)


def accept_all(seq: Sequence, tokens: I32) -> str | None:
    """Feeds a row's tokens to its grammar; a line for the user where that fails."""
    assert seq.matcher is not None
    try:
        refused = [token for token in tokens.tolist() if not seq.matcher.accept(token)]
    except ValueError as error:
        return f"the grammar failed: {error}"
    return f"the grammar does not allow token {refused[0]}, which was drawn" if refused else None


def merge_ended(outputs: StepOutputs, desk: Desk) -> StepOutputs:
    """Adds sequences that ended without a row in this step: aborts, timeouts, errors, prompt-only requests."""
    if not desk.ended:
        return outputs
    ended, desk.ended = desk.ended, []
    for handle, _, extras in ended:
        outputs.extras.setdefault(handle, {}).update(extras)
    handles = np.asarray([handle for handle, _, _ in ended], np.int64)
    finishes = np.asarray([FINISHES.index(finish) for _, finish, _ in ended], np.int8)
    return StepOutputs(
        np.concatenate([outputs.handles, handles]),
        np.concatenate([outputs.counts, np.zeros(len(ended), np.int32)]),
        outputs.tokens,
        np.concatenate([outputs.finishes, finishes]),
        outputs.extras,
    )


def empty_outputs() -> StepOutputs:
    none = np.zeros(0, np.int32)
    return StepOutputs(np.zeros(0, np.int64), none, none, np.zeros(0, np.int8))
