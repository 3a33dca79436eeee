"""State by slot, twice: what the host must know to stage a step, and the tables on the device that steps work on.

The device owns `length` and the last token drawn; the host keeps a shadow of `length` (exact as long as no row brings
drafts, an upper bound otherwise) to check plans and to bound contexts without reading the device. The device tables
have one seat more than there are slots: `dummy`, which padding rows of a captured graph use and nobody reads.

Shapes: S1 slots + 1, B blocks of a sequence, V vocab, W width of a per-slot list (grown by doubling).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.engine.contract import I32, KVGroup, SlotInit
from tokenmill.types import Sampling


class Stage(IntFlag):
    """Stages of the sampler that a slot needs; a stage no row of the step needs is not run."""

    NONE = 0
    BIAS = 1
    STOPS = 2
    PENALTY = 4
    DRAW = 8
    TOP_K = 16
    TOP_P = 32
    MIN_P = 64


# Columns of the parameter tables; the three of penalties stand side by side in this order (`penalise`).
F_TEMPERATURE, F_TOP_P, F_MIN_P, F_REPETITION, F_PRESENCE, F_FREQUENCY, F_ROPE_BASE, NUM_F = range(8)
I_TOP_K, I_SEED_LOW, I_SEED_HIGH, I_MIN_TOKENS, I_TURN_SHIFT, NUM_I = range(6)
LEAST_TEMPERATURE = 1e-5


def stages_of(init: SlotInit) -> Stage:
    """Which stages the sampling of one slot needs."""
    s = init.sampling
    stages = Stage.NONE
    if s.logit_bias or s.bad_token_ids:
        stages |= Stage.BIAS
    if init.stop_ids and init.min_tokens > init.prompt_tokens:
        stages |= Stage.STOPS
    if s.needs_history:
        stages |= Stage.PENALTY
    return stages if s.greedy else stages | _draw_stages(s)


def _draw_stages(s: Sampling) -> Stage:
    stages = Stage.DRAW
    if s.top_k > 0:
        stages |= Stage.TOP_K
    if s.top_p < 1.0:
        stages |= Stage.TOP_P
    if s.min_p > 0.0:
        stages |= Stage.MIN_P
    return stages


class HostSlots:
    """What staging knows of every slot. `length` -1: the seat is free."""

    def __init__(self, num_slots: int, groups: tuple[KVGroup, ...]):
        self.groups = groups
        self.num_slots = num_slots
        self.length: I32 = np.full(num_slots, -1, np.int32)
        self.epoch: I32 = np.zeros(num_slots, np.int32)
        self.stages: I32 = np.zeros(num_slots, np.int32)
        self.min_tokens: I32 = np.zeros(num_slots, np.int32)
        self.top_k: I32 = np.zeros(num_slots, np.int32)
        self.top_logprobs: I32 = np.zeros(num_slots, np.int32)
        self.blocks: I32 = np.zeros((len(groups), num_slots), np.int32)

    def release(self, slots: I32) -> None:
        if not len(slots):
            return
        self.check(slots, "released")
        self.length[slots] = -1
        self.blocks[:, slots] = 0

    def seat(self, init: SlotInit) -> None:
        slot = init.slot
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot {slot} given; there are slots 0..{self.num_slots - 1}")
        if self.length[slot] >= 0:
            raise ValueError(f"slot {slot} given to epoch {init.epoch} but held by epoch {self.epoch[slot]}")
        self.length[slot] = 0
        self.epoch[slot] = init.epoch
        self.stages[slot] = stages_of(init)
        self.min_tokens[slot] = init.min_tokens
        self.top_k[slot] = init.sampling.top_k
        self.top_logprobs[slot] = init.top_logprobs

    def give_blocks(self, new_blocks: I32) -> None:
        """new_blocks [n, 4]: (group, slot, index, block)."""
        if not len(new_blocks):
            return
        for g, group in enumerate(self.groups):
            part = new_blocks[new_blocks[:, 0] == g]
            if not len(part):
                continue
            self.check(part[:, 1], "given blocks")
            if part[:, 3].min() < 0 or part[:, 3].max() >= group.num_blocks:
                raise ValueError(f"block outside 0..{group.num_blocks - 1} given in group {group.name!r}")
            np.maximum.at(self.blocks[g], part[:, 1], part[:, 2] + 1)

    def check(self, slots: I32, what: str) -> None:
        """Every slot exists and is held."""
        if len(slots) and (slots.min() < 0 or slots.max() >= self.num_slots or self.length[slots].min() < 0):
            bad = [int(s) for s in slots if not 0 <= s < self.num_slots or self.length[s] < 0]
            raise ValueError(f"slots {bad[:8]} {what} but not held")

    def check_room(self, slots: I32, totals: I32) -> None:
        """Every position up to `totals` has a block in every group."""
        for g, group in enumerate(self.groups):
            short = totals > self.blocks[g, slots] * group.block_tokens
            if short.any():
                i = int(np.argmax(short))
                raise ValueError(
                    f"slot {slots[i]} would hold {totals[i]} tokens but has {self.blocks[g, slots[i]]} blocks of "
                    f"{group.block_tokens} in group {group.name!r}"
                )


@dataclass(slots=True)
class TableSizes:
    """num_slots seats; max_blocks per sequence by group; vocab_size of the penalties' counts."""

    num_slots: int
    max_blocks: tuple[int, ...]
    vocab_size: int


class SlotTables:
    """The device's side. Changed only by steps, in order."""

    def __init__(self, sizes: TableSizes, device: torch.device):
        seats = sizes.num_slots + 1
        self.dummy = sizes.num_slots
        self.device = device
        self.length = torch.zeros(seats, dtype=torch.int32, device=device)
        self.last = torch.zeros(seats, dtype=torch.int64, device=device)
        self.blocks = tuple(torch.zeros(seats, b, dtype=torch.int32, device=device) for b in sizes.max_blocks)
        self.params_f = torch.zeros(seats, NUM_F, device=device)
        self.params_i = torch.zeros(seats, NUM_I, dtype=torch.int32, device=device)
        self.bias_ids = torch.zeros(seats, 1, dtype=torch.int64, device=device)
        self.bias_values = torch.zeros(seats, 1, device=device)
        self.stop_ids = torch.zeros(seats, 1, dtype=torch.int64, device=device)
        self.stop_values = torch.zeros(seats, 1, device=device)
        self.prompt_seen = torch.zeros(seats, sizes.vocab_size, dtype=torch.bool, device=device)
        self.output_counts = torch.zeros(seats, sizes.vocab_size, dtype=torch.int16, device=device)

    @staticmethod
    def nbytes(sizes: TableSizes) -> int:
        """Device bytes of the tables at start (pure)."""
        return (sizes.num_slots + 1) * (3 * sizes.vocab_size + 4 * sum(sizes.max_blocks) + 4 * (NUM_F + NUM_I) + 36)

    def apply(self, part: dict[str, Tensor]) -> None:
        """New seats, then new blocks: the parts that `pack_changes` made, on the device."""
        if "init_slots" in part:
            self._seat(part)
        for g, table in enumerate(self.blocks):
            if f"blocks{g}" in part:
                slots, index, block = part[f"blocks{g}"].unbind(1)
                table[slots.long(), index.long()] = block

    def rope_bases(self) -> Tensor:
        """fp32 [S1]."""
        return self.params_f[:, F_ROPE_BASE]

    def turn_shifts(self) -> Tensor:
        """int32 [S1]."""
        return self.params_i[:, I_TURN_SHIFT]

    def advance(self, slots_R: Tensor, totals_R: Tensor) -> None:
        self.length[slots_R] = totals_R

    def drew(self, slots_R: Tensor, tokens_R: Tensor, count: bool) -> None:
        """Keeps what was drawn; `count`: some row of the step has penalties."""
        self.last[slots_R] = tokens_R
        if count:
            one = torch.ones_like(tokens_R, dtype=torch.int16)
            self.output_counts.index_put_((slots_R, tokens_R), one, accumulate=True)

    def _seat(self, part: dict[str, Tensor]) -> None:
        slots = part["init_slots"].long()
        self.params_f[slots] = part["init_f"].view(torch.float32)
        self.params_i[slots] = part["init_i"]
        self.length[slots] = 0
        if "bias_slots" in part:
            self.bias_ids, self.bias_values = _put_lists(self.bias_ids, self.bias_values, part, "bias")
        if "stop_slots" in part:
            self.stop_ids, self.stop_values = _put_lists(self.stop_ids, self.stop_values, part, "stop")
        if "seen_slots" in part:
            self._remember(part)

    def _remember(self, part: dict[str, Tensor]) -> None:
        slots = part["seen_slots"].long()
        self.prompt_seen[slots] = False
        self.output_counts[slots] = 0
        if "prompt_ids" in part:
            slot, token = part["prompt_ids"].long().unbind(1)
            self.prompt_seen[slot, token] = True
        if "output_ids" in part:
            slot, token = part["output_ids"].long().unbind(1)
            self.output_counts.index_put_((slot, token), torch.ones_like(slot, dtype=torch.int16), accumulate=True)


def _put_lists(ids: Tensor, values: Tensor, part: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The tables with new rows in them, grown where the rows are wider; a value of 0 is padding."""
    slots, new_ids, new_values = part[f"{name}_slots"].long(), part[f"{name}_ids"], part[f"{name}_values"]
    wide = new_ids.shape[1] - ids.shape[1]
    if wide > 0:
        ids, values = (torch.nn.functional.pad(t, (0, wide)) for t in (ids, values))
    ids[slots], values[slots] = 0, 0.0
    ids[slots, : new_ids.shape[1]] = new_ids.long()
    values[slots, : new_values.shape[1]] = new_values.view(torch.float32)
    return ids, values


def pack_changes(inits: list[SlotInit], new_blocks: I32, num_groups: int) -> dict[str, NDArray[np.int32]]:
    """The int32 arrays that `SlotTables.apply` reads, by name; floats travel as their bits."""
    part: dict[str, NDArray[np.int32]] = {}
    if inits:
        part["init_slots"] = np.array([i.slot for i in inits], np.int32)
        part["init_f"] = np.array([_floats(i) for i in inits], np.float32).view(np.int32)
        part["init_i"] = np.array([_ints(i) for i in inits], np.int32)
        _pack_lists(part, "bias", {i.slot: _biases(i.sampling) for i in inits if stages_of(i) & Stage.BIAS})
        stops = {i.slot: [(t, -np.inf) for t in i.stop_ids] for i in inits if stages_of(i) & Stage.STOPS}
        _pack_lists(part, "stop", stops)
        _pack_history(part, [i for i in inits if i.sampling.needs_history])
    for g in range(num_groups if len(new_blocks) else 0):
        mine = new_blocks[new_blocks[:, 0] == g]
        if len(mine):
            part[f"blocks{g}"] = np.ascontiguousarray(mine[:, 1:])
    return part


def _floats(init: SlotInit) -> list[float]:
    s = init.sampling
    temperature = 1.0 if s.greedy else max(s.temperature, LEAST_TEMPERATURE)
    return [
        temperature, s.top_p, s.min_p, s.repetition_penalty, s.presence_penalty, s.frequency_penalty, init.rope_base
    ]


def _ints(init: SlotInit) -> list[int]:
    # Greedy rows are told to the sampler by a top_k of 1.
    top_k = 1 if init.sampling.greedy else init.sampling.top_k
    low, high = (init.seed & 0xFFFFFFFF), (init.seed >> 32) & 0xFFFFFFFF
    return [top_k, _signed(low), _signed(high), init.min_tokens, init.turn_shift]


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _biases(s: Sampling) -> list[tuple[int, float]]:
    """Addends by token; a value of exactly 0 changes nothing and is dropped, because 0 marks padding."""
    return [(t, v) for t, v in s.logit_bias if v != 0.0] + [(t, -np.inf) for t in s.bad_token_ids]


def _pack_lists(part: dict[str, NDArray[np.int32]], name: str, lists: dict[int, list[tuple[int, float]]]) -> None:
    if not lists:
        return
    longest = max(1, *(len(v) for v in lists.values())) if len(lists) > 1 else max(1, len(next(iter(lists.values()))))
    width = 1 << (longest - 1).bit_length()
    ids, values = np.zeros((len(lists), width), np.int32), np.zeros((len(lists), width), np.float32)
    for i, pairs in enumerate(lists.values()):
        ids[i, : len(pairs)] = [t for t, _ in pairs]
        values[i, : len(pairs)] = [v for _, v in pairs]
    part[f"{name}_slots"] = np.array(list(lists), np.int32)
    part[f"{name}_ids"], part[f"{name}_values"] = ids, values.view(np.int32)


def _pack_history(part: dict[str, NDArray[np.int32]], inits: list[SlotInit]) -> None:
    """(slot, token) pairs of prompts and of tokens drawn before a preemption."""
    if not inits:
        return
    for init in inits:
        if init.history is None:
            raise ValueError(f"slot {init.slot} has penalties but came without its history")
    part["seen_slots"] = np.array([i.slot for i in inits], np.int32)
    _pack_pairs(part, "prompt_ids", [(i.slot, i.history[: i.prompt_tokens]) for i in inits if i.history is not None])
    _pack_pairs(part, "output_ids", [(i.slot, i.history[i.prompt_tokens :]) for i in inits if i.history is not None])


def _pack_pairs(part: dict[str, NDArray[np.int32]], name: str, lists: list[tuple[int, I32]]) -> None:
    pairs = [np.stack([np.full(len(ids), slot, np.int32), ids], 1) for slot, ids in lists if len(ids)]
    if pairs:
        part[name] = np.concatenate(pairs).astype(np.int32)
