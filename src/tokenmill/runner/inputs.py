"""From a plan to what a device needs: checked arrays first (host, numpy), then tensors (device).

`stage` checks a plan against the slots, moves the host's shadow forward and packs everything the step needs into one
int32 array, so that one copy carries it. Rows are put in order: decode slots, other one-token rows, longer rows. A
steady decode step carries its slots and nothing else; all its numbers come from the device tables.

`decode_rows` and `mixed_rows` build `RowMeta` on the device without reading anything back. Shapes as in
kernels/meta.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.engine.contract import I32, Row, StepPlan
from tokenmill.kernels.meta import ChunkRow, RowMeta
from tokenmill.runner.encode import EncodeWork, HostImages
from tokenmill.runner.slots import HostSlots, SlotTables, Stage, pack_changes
from tokenmill.types import Want

EXTRA_WANTS = Want.PROMPT_LOGPROBS | Want.LOGITS | Want.HIDDEN | Want.POOL


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan may not exceed. `grids`: tokens of images may be turned by rows and columns; `ahead`: they see each
    other."""

    max_rows: int
    max_step_tokens: int
    max_model_tokens: int
    vocab_size: int
    grids: bool = False
    ahead: bool = False


@dataclass(slots=True)
class RowExtra:
    """What one row wants beside its token. `first`, `count`: its tokens in the packed order."""

    key: tuple[int, int]
    want: Want
    first: int
    count: int
    num_top: int
    targets: I32 | None


@dataclass(slots=True)
class SampleWork:
    """Rows that draw a token, in the order of the result.

    slots, epochs int32 [n]. stages: of any row. num_candidates: see sampler. logprob_rows int32: entries that also want
    LOGPROBS; num_top: their alternatives. masked: entry of each slot whose mask comes late.
    """

    slots: I32
    epochs: I32
    stages: Stage
    num_candidates: int
    logprob_rows: I32
    num_top: NDArray[np.int32]
    masked: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Staged:
    """A step, checked and packed. `segments`: (offset, shape) in `buffer` by name.

    `steady`: every row is a decode slot. max_row_tokens, max_context, chunks: as in RowMeta.
    """

    step: int
    buffer: NDArray[np.int32]
    segments: dict[str, tuple[int, tuple[int, ...]]]
    num_rows: int
    num_single: int
    max_row_tokens: int
    max_context: int
    chunks: tuple[ChunkRow, ...]
    steady: bool
    work: SampleWork
    extras: list[RowExtra]
    copies: I32
    encodes: list[EncodeWork]


class Packer:
    """Gathers int32 arrays by name into one."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int32]] = []
        self._size = 0
        self.segments: dict[str, tuple[int, tuple[int, ...]]] = {}

    def add(self, name: str, array: NDArray[np.int32]) -> None:
        self.segments[name] = (self._size, array.shape)
        self._parts.append(array.reshape(-1))
        self._size += array.size

    def buffer(self) -> NDArray[np.int32]:
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.int32)


def unpack(buffer: Tensor, segments: dict[str, tuple[int, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Views of the packed array by name."""
    return {
        name: buffer[start : start + int(np.prod(shape))].view(shape) for name, (start, shape) in segments.items()
    }


def stage(plan: StepPlan, host: HostSlots, limits: Limits, images: HostImages) -> Staged:
    """The plan as arrays; the host's shadow moves on. Raises ValueError on what cannot be run."""
    host.release(plan.released_slots)
    for init in plan.new_slots:
        host.seat(init)
    host.give_blocks(plan.new_blocks)
    encodes = images.apply(plan.dropped_media, plan.encode)
    rows = sorted(plan.rows, key=lambda row: row.num_tokens > 1)
    order = _Order(plan.decode_slots, rows)
    _check(order, host, limits)
    totals = _starts(order, host) + order.counts
    _check_totals(order, totals, host, limits)
    host.length[order.slots] = totals
    packer = Packer()
    for name, array in pack_changes(plan.new_slots, plan.new_blocks, len(host.groups)).items():
        packer.add(name, array)
    packer.add("slots", order.slots)
    if rows:
        _pack_mixed(packer, order)
        _pack_images(packer, order, images)
        _pack_turns(packer, order, limits.grids)
        if limits.ahead:
            _pack_ends(packer, order, images.tile_tokens)
    work = _work(plan, order, totals, host, packer)
    return Staged(
        step=plan.step,
        buffer=packer.buffer(),
        segments=packer.segments,
        num_rows=len(order.slots),
        num_single=int((order.counts == 1).sum()),
        max_row_tokens=int(order.counts.max(initial=0)),
        max_context=int(totals.max(initial=0)),
        chunks=_chunks(order, totals),
        steady=not rows and len(order.slots) > 0,
        work=work,
        extras=_extras(order, host),
        copies=plan.block_copies,
        encodes=encodes,
    )


class _Order:
    """Rows in device order, as arrays."""

    def __init__(self, decode_slots: I32, rows: list[Row]):
        self.num_decode = len(decode_slots)
        self.rows = rows
        self.slots: I32 = np.concatenate([decode_slots, [r.slot for r in rows]]).astype(np.int32)
        self.counts: I32 = np.ones(len(self.slots), np.int32)
        self.counts[self.num_decode :] = [r.num_tokens for r in rows]
        # First token of each row, and the end.
        self.firsts: I32 = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int32)


def _check(order: _Order, host: HostSlots, limits: Limits) -> None:
    host.check(order.slots, "run")
    if len(np.unique(order.slots)) != len(order.slots):
        raise ValueError("a slot stands twice in one plan")
    if len(order.slots) > limits.max_rows:
        raise ValueError(f"{len(order.slots)} rows planned; the runner takes {limits.max_rows}")
    if order.firsts[-1] > limits.max_step_tokens:
        raise ValueError(f"{order.firsts[-1]} tokens planned; the runner takes {limits.max_step_tokens}")
    for row in order.rows:
        _check_row(row, limits.vocab_size)


def _check_row(row: Row, vocab_size: int) -> None:
    if row.num_tokens < 1:
        raise ValueError(f"slot {row.slot} has a row of {row.num_tokens} tokens")
    if row.tokens is None:
        if row.num_tokens != 1:
            raise ValueError(f"slot {row.slot} brings {row.num_tokens - 1} drafts; this runner takes none")
    elif len(row.tokens) != row.num_tokens:
        raise ValueError(f"slot {row.slot} says {row.num_tokens} tokens and brings {len(row.tokens)}")
    elif row.tokens.min() < 0 or row.tokens.max() >= vocab_size:
        raise ValueError(f"slot {row.slot} brings a token outside 0..{vocab_size - 1}")
    if row.want & Want.PROMPT_LOGPROBS and (row.targets is None or len(row.targets) != row.num_tokens):
        raise ValueError(f"slot {row.slot} wants prompt log-probabilities without a target for each token")


def _starts(order: _Order, host: HostSlots) -> I32:
    """Where each row begins: the slot's own length, or what the plan says."""
    starts = host.length[order.slots].copy()
    for i, row in enumerate(order.rows, order.num_decode):
        if row.tokens is not None:
            starts[i] = row.start
    return starts


def _check_totals(order: _Order, totals: I32, host: HostSlots, limits: Limits) -> None:
    if len(totals) and totals.max() > limits.max_model_tokens:
        slot = order.slots[int(totals.argmax())]
        raise ValueError(f"slot {slot} would hold {totals.max()} tokens; the model takes {limits.max_model_tokens}")
    host.check_room(order.slots, totals)


def _chunks(order: _Order, totals: I32) -> tuple[ChunkRow, ...]:
    """Rows of more than one token, which stand last, so that attention need not pad the others to their length."""
    return tuple(
        ChunkRow(int(i), int(order.firsts[i]), int(order.counts[i]), int(totals[i]))
        for i in np.flatnonzero(order.counts > 1)
    )


def _pack_mixed(packer: Packer, order: _Order) -> None:
    """What rows that are not steady need: -1 stands for what only the device knows."""
    starts: I32 = np.full(len(order.slots), -1, np.int32)
    ids: I32 = np.full(order.firsts[-1], -1, np.int32)
    for i, row in enumerate(order.rows, order.num_decode):
        if row.tokens is not None:
            starts[i] = row.start
            ids[order.firsts[i] : order.firsts[i + 1]] = row.tokens
    packer.add("starts", starts)
    packer.add("firsts", order.firsts)
    packer.add("counts", order.counts)
    packer.add("rows", np.repeat(np.arange(len(order.slots), dtype=np.int32), order.counts))
    packer.add("ids", ids)


def _pack_images(packer: Packer, order: _Order, images: HostImages) -> None:
    """Which tokens stand for images, and which vectors of the encoder's arena take their places."""
    to, source = images.places(order.rows, order.firsts[order.num_decode : -1])
    if len(to):
        packer.add("image_to", to)
        packer.add("image_from", source)


def _pack_turns(packer: Packer, order: _Order, grids: bool) -> None:
    """Which tokens are turned by something else than their position, and by what."""
    places: list[I32] = []
    turns: list[I32] = []
    for i, row in enumerate(order.rows, order.num_decode):
        if row.turns is None:
            continue
        if not grids or row.turns.shape != (3, row.num_tokens):
            raise ValueError(f"slot {row.slot} turns its tokens by {row.turns.shape}, which this model cannot")
        places.append(np.arange(order.firsts[i], order.firsts[i + 1], dtype=np.int32))
        turns.append(row.turns)
    if places:
        packer.add("turn_to", np.concatenate(places))
        packer.add("turns", np.ascontiguousarray(np.concatenate(turns, 1)))


def _pack_ends(packer: Packer, order: _Order, image_tokens: int) -> None:
    """The last place that each token sees; -1: itself. An image is one tile of vectors, whose end is in its row."""
    ends: I32 = np.full(order.firsts[-1], -1, np.int32)
    for i, row in enumerate(order.rows, order.num_decode):
        for part in row.embeds:
            if part.start + part.count != image_tokens:
                raise ValueError(f"slot {row.slot} ends within image {part.digest[:16]}, whose tokens see each other")
            first = order.firsts[i] + part.offset
            ends[first : first + part.count] = row.start + part.offset + part.count - 1
    if (ends >= 0).any():
        packer.add("ends", ends)


def _work(plan: StepPlan, order: _Order, totals: I32, host: HostSlots, packer: Packer) -> SampleWork:
    """Who draws, in the order of the result: decode slots, then rows as the plan lists them."""
    place = {row.slot: i for i, row in enumerate(order.rows, order.num_decode)}
    drawing = [place[row.slot] for row in plan.rows if row.want & Want.TOKEN]
    index = np.concatenate([np.arange(order.num_decode), drawing]).astype(np.int32)
    slots = order.slots[index]
    if plan.rows:
        packer.add("drawing", index)
        packer.add("picks", order.firsts[index + 1] - 1)
    wanting = np.isin(slots[: order.num_decode], plan.want_logprobs)
    rows_want = [bool(row.want & Want.LOGPROBS) for row in plan.rows if row.want & Want.TOKEN]
    logprob_rows = np.flatnonzero(np.concatenate([wanting, np.array(rows_want, np.bool_)])).astype(np.int32)
    if len(logprob_rows):
        packer.add("logprob_rows", logprob_rows)
    return SampleWork(
        slots=slots,
        epochs=host.epoch[slots],
        stages=_stages(slots, totals[index], host),
        num_candidates=_candidates(slots, host),
        logprob_rows=logprob_rows,
        num_top=host.top_logprobs[slots[logprob_rows]],
        masked=_masked(plan.masked, slots),
    )


def _stages(slots: I32, totals: I32, host: HostSlots) -> Stage:
    stages = Stage(int(np.bitwise_or.reduce(host.stages[slots], initial=0)))
    if stages & Stage.STOPS and not (totals < host.min_tokens[slots]).any():
        stages &= ~Stage.STOPS
    return stages


def _candidates(slots: I32, host: HostSlots) -> int:
    """The largest top-k, where every row that top-p cuts has one; else 0."""
    stages, top_k = host.stages[slots], host.top_k[slots]
    if (((stages & Stage.TOP_P) != 0) & ((stages & Stage.TOP_K) == 0)).any():
        return 0
    return int(top_k[(stages & Stage.TOP_K) != 0].max(initial=0))


def _masked(masked: I32, slots: I32) -> dict[int, int]:
    entry = {int(slot): i for i, slot in enumerate(slots)} if len(masked) else {}
    missing = [int(s) for s in masked if int(s) not in entry]
    if missing:
        raise ValueError(f"slots {missing[:8]} are masked but draw no token")
    return {int(s): entry[int(s)] for s in masked}


def _extras(order: _Order, host: HostSlots) -> list[RowExtra]:
    return [
        RowExtra(
            key=(row.slot, int(host.epoch[row.slot])),
            want=row.want & EXTRA_WANTS,
            first=int(order.firsts[i]),
            count=row.num_tokens,
            num_top=int(host.top_logprobs[row.slot]),
            targets=row.targets,
        )
        for i, row in enumerate(order.rows, order.num_decode)
        if row.want & EXTRA_WANTS
    ]


# ---------------------------------------------------------------- on the device


@dataclass(frozen=True, slots=True)
class Geometry:
    """What building rows needs beside tables: tokens per block by group, and the model's rotation and LogN factors.

    `grids`: rotations also go by the slot's `turn_shift` and the step's own turns.
    """

    block_tokens: tuple[int, ...]
    rope: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    logn: Callable[[Tensor], Tensor | None]
    grids: bool = False


def decode_rows(tables: SlotTables, slots_R: Tensor, geometry: Geometry, max_context: int) -> tuple[Tensor, RowMeta]:
    """ids and rows of a step in which every slot advances by the token it drew last. Rows of `dummy` are padding."""
    valid = slots_R != tables.dummy
    starts = torch.where(valid, tables.length[slots_R], 0)
    totals = torch.where(valid, starts + 1, 0)
    rows_R = torch.arange(len(slots_R), dtype=torch.int32, device=slots_R.device)
    flat = _Flat(slots_R, rows_R, starts, totals, valid)
    firsts = torch.arange(len(slots_R) + 1, dtype=torch.int32, device=slots_R.device)
    single = valid.sum(dtype=torch.int32).view(1)
    meta = _meta(tables, flat, geometry, _Bounds(firsts, single, 1, max_context, True))
    return tables.last[slots_R], meta


def mixed_rows(
    tables: SlotTables, part: dict[str, Tensor], staged: Staged, geometry: Geometry
) -> tuple[Tensor, RowMeta]:
    """ids and rows of any step, exactly as long as it is (no padding)."""
    slots_R, rows_T = part["slots"].long(), part["rows"]
    given = part["starts"]
    starts = torch.where(given >= 0, given, tables.length[slots_R])
    rows_long = rows_T.long()
    offsets = torch.arange(len(rows_T), dtype=torch.int32, device=rows_T.device) - part["firsts"][rows_long]
    flat = _Flat(slots_R, rows_T, starts[rows_long] + offsets, starts + part["counts"], None)
    single = torch.full((1,), staged.num_single, dtype=torch.int32, device=rows_T.device)
    all_single = staged.max_row_tokens == 1
    chunks = None if all_single else staged.chunks
    bounds = _Bounds(part["firsts"], single, staged.max_row_tokens, staged.max_context, all_single, chunks)
    ids = torch.where(part["ids"] >= 0, part["ids"].long(), tables.last[slots_R][rows_long])
    turns = (part["turn_to"], part["turns"]) if "turns" in part else None
    meta = _meta(tables, flat, geometry, bounds, turns)
    if "ends" in part:
        meta.ends_T = torch.where(part["ends"] >= 0, part["ends"], flat.positions_T)
    return ids, meta


@dataclass(slots=True)
class _Flat:
    """Rows and tokens: slots int64 [R], rows and positions int32 [T], totals int32 [R]; valid bool [T] or None."""

    slots_R: Tensor
    rows_T: Tensor
    positions_T: Tensor
    totals_R: Tensor
    valid_T: Tensor | None


@dataclass(slots=True)
class _Bounds:
    starts_R1: Tensor
    num_single: Tensor
    max_row_tokens: int
    max_context: int
    all_single: bool
    chunks: tuple[ChunkRow, ...] | None = None


def _meta(
    tables: SlotTables, flat: _Flat, geometry: Geometry, bounds: _Bounds, turns: tuple[Tensor, Tensor] | None = None
) -> RowMeta:
    slots_T = flat.slots_R if bounds.all_single else flat.slots_R[flat.rows_T.long()]
    turned = _turned(tables, flat, slots_T, turns) if geometry.grids else flat.positions_T
    cos, sin = geometry.rope(tables.rope_bases()[slots_T], turned)
    places = [
        _places(table, size, slots_T, flat, bounds.max_context)
        for table, size in zip(tables.blocks, geometry.block_tokens, strict=True)
    ]
    return RowMeta(
        starts_R1=bounds.starts_R1,
        totals_R=flat.totals_R,
        slots_R=flat.slots_R.to(torch.int32),
        rows_T=flat.rows_T,
        positions_T=flat.positions_T,
        tables=tuple(table for table, _ in places),
        writes_T=tuple(writes for _, writes in places),
        num_single=bounds.num_single,
        cos_TK=cos,
        sin_TK=sin,
        logn_T=geometry.logn(flat.positions_T),
        max_row_tokens=bounds.max_row_tokens,
        max_context=bounds.max_context,
        all_single=bounds.all_single,
        chunks=bounds.chunks,
    )


def _turned(tables: SlotTables, flat: _Flat, slots_T: Tensor, turns: tuple[Tensor, Tensor] | None) -> Tensor:
    """What tokens are turned by, int32: [T], or [3, T] where the step says it for some of them."""
    shifted_T = flat.positions_T + tables.turn_shifts()[slots_T]
    if turns is None:
        return shifted_T
    to, own = turns
    return shifted_T.expand(3, -1).index_copy(1, to.long(), own)


def _places(table: Tensor, size: int, slots_T: Tensor, flat: _Flat, max_context: int) -> tuple[Tensor, Tensor]:
    """A group's block tables [R, B] and where each token's K and V go, int64 [T] (-1: nowhere)."""
    width = min(-(-max_context // size), table.shape[1])
    positions = flat.positions_T.long()
    writes = table[slots_T, positions // size].long() * size + positions % size
    if flat.valid_T is not None:
        writes = torch.where(flat.valid_T, writes, -1)
    return table[flat.slots_R, :width], writes

