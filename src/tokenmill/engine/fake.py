"""A runner without a model, for tests of everything above and of the scheduler itself.

Tokens and lengths live in slots, and the KV cache is simulated: every position's cell holds a number made from the
token, its position (or what an image's grid turns it by), the rope base and all cells it can see, read back through
the block tables. The next token is a
pure function of those cells, the seed, the position and (with penalties) the history. So a wrong block, a stale prefix,
a wrong position, a lost or doubled token shows as a wrong token; `dream` computes the right ones from the token list
alone. It refuses (ValueError) whatever a real runner cannot do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenmill.engine.contract import Capacity, Encode, KVGroup, Row, RowExtras, SlotInit, StepPlan, StepResult
from tokenmill.engine.echo import EchoEngine as EchoEngine
from tokenmill.types import Finish, Request, Sampling, Want

POISON = 1 << 80
TOKEN = int(Want.TOKEN)
WITH_LOGPROBS = Want.TOKEN | Want.LOGPROBS
MASK30 = (1 << 30) - 1
HIDDEN_SIZE = 4


def refuse(message: str) -> None:
    raise ValueError(f"the runner cannot do this: {message}")


def mix(a: int, b: int, c: int) -> int:
    """A number in [0, 2**30) that differs where any argument does."""
    value = (a * 0x9E3779B1 + b * 0x85EBCA77 + c * 0xC2B2AE3D + 0x27D4EB2F) & 0xFFFFFFFFFFFF
    value ^= value >> 17
    return ((value * 0x2545F491) >> 7) & MASK30


def cell(token: int, position: int, salt: int, seen: int, poison: int) -> int:
    """What a position leaves in the cache; not finite once a poisoned token is among what it sees."""
    if token == poison or seen >= POISON:
        return POISON
    return mix(token * 8191 + position, salt, seen)


def place(time: int, row: int, column: int) -> int:
    """Where a token stands, in one number; its position where it is turned by nothing else."""
    return time + (row - time) * 1009 + (column - time) * 9173


def vector(digest: str, index: int) -> int:
    """What stands in a token's place where an image is: no token, and another one at every index."""
    return (1 << 20) + mix(sum(digest.encode()) * 31 + len(digest), index, 11)


def weight_of(token: int, is_prompt: bool) -> int:
    """What a token adds to the penalties' history: prompt and output count differently."""
    return (token + 1) * (7 if is_prompt else 13)


@dataclass(slots=True)
class Chooser:
    """Draws for one sequence: everything beside the cells that a draw depends on."""

    vocab_size: int
    sampling: Sampling
    seed: int
    min_tokens: int
    stop_ids: tuple[int, ...]

    def choose(self, seen: int, position: int, history: int, mask: bytes | None) -> int:
        noise = 0 if self.sampling.greedy else self.seed & MASK30
        start = mix(seen, noise, position * 31 + history) % self.vocab_size
        for step in range(self.vocab_size):
            token = (start + step) % self.vocab_size
            if token in self.stop_ids and position < self.min_tokens:
                continue
            if mask is None or mask[token >> 3] >> (token & 7) & 1:
                return token
        raise ValueError("the mask allows no token")


def logprob(seen: int, token: int) -> float:
    return -(mix(seen, token, 5) % 1000) / 1000


@dataclass(slots=True)
class Seat:
    """A slot: its sequence, how many positions have run, the token drawn last, the cells' addresses."""

    init: SlotInit
    chooser: Chooser
    salt: int
    tables: list[dict[int, int]]
    length: int = 0
    fresh: bool = True
    last: int | None = None
    failed: bool = False
    history: int = 0


class FakeRunner:
    """`poison`: a token whose rows are not finite. `latency_s`: from `run` until `result` returns, one step at a time.

    `fail_at`: the step whose result raises. Work is done in `run` (in `sample`, if the plan has masked rows).
    """

    def __init__(
        self, capacity: Capacity, *, poison: int = -1, latency_s: float = 0.0, fail_at: int | None = None
    ) -> None:
        self._capacity = capacity
        self._poison = poison
        self._latency_s = latency_s
        self._fail_at = fail_at
        self._free_at = 0.0
        self._cells: list[list[int | None]] = [[None] * (g.num_blocks * g.block_tokens) for g in capacity.groups]
        self._holders: list[dict[int, dict[int, int]]] = [{} for _ in capacity.groups]
        self.seats: dict[int, Seat] = {}
        self.closed = False
        self.histories_seen: list[tuple[int, int, np.ndarray]] = []
        self._unsampled: FakePending | None = None
        self.images: dict[str, int] = {}
        self.encoded = 0

    def capacity(self) -> Capacity:
        return self._capacity

    def control(self, op: str, **arguments: Any) -> Any:
        refuse(f"control {op!r}")

    def close(self) -> None:
        self.closed = True

    def run(self, plan: StepPlan) -> FakePending:
        if self.closed:
            refuse("it is closed")
        if self._unsampled is not None:
            refuse("the step before this one has not been sampled")
        if not plan:
            refuse("an empty plan")
        self._release(plan)
        self._seat(plan)
        self._give_blocks(plan)
        self._keep_images(plan)
        rows = self._check_rows(plan)
        self._free_at = max(time.monotonic(), self._free_at) + self._latency_s if self._latency_s else 0.0
        pending = FakePending(self, plan, rows, self._free_at)
        if len(plan.masked):
            self._unsampled = pending
        else:
            pending.compute({})
        return pending

    # ---- the plan's tables

    def _release(self, plan: StepPlan) -> None:
        for slot in plan.released_slots.tolist():
            seat = self.seats.pop(slot, None)
            if seat is None:
                refuse(f"slot {slot} is released but was never given")
                return
            for holders, table in zip(self._holders, seat.tables, strict=True):
                for entry, block in table.items():
                    if holders[block].get(slot) == entry:
                        del holders[block][slot]

    def _seat(self, plan: StepPlan) -> None:
        for init in plan.new_slots:
            if init.slot in self.seats or not 0 <= init.slot < self._capacity.max_rows:
                refuse(f"slot {init.slot} is taken or does not exist")
            if init.sampling.needs_history != (init.history is not None):
                refuse(f"slot {init.slot}: history is {'missing' if init.history is None else 'not needed'}")
            chooser = Chooser(self._capacity.vocab_size, init.sampling, init.seed, init.min_tokens, init.stop_ids)
            salt = mix(hash(init.rope_base) & MASK30, len(init.adapter), sum(init.adapter.encode()))
            seat = Seat(init, chooser, salt, [{} for _ in self._capacity.groups])
            if init.history is not None:
                told = init.history.tolist()
                seat.history = sum(weight_of(t, i < init.prompt_tokens) for i, t in enumerate(told))
                self.histories_seen.append((init.slot, init.prompt_tokens, init.history))
            self.seats[init.slot] = seat

    def _give_blocks(self, plan: StepPlan) -> None:
        for index, slot, entry, block in plan.new_blocks.tolist():
            group = self._capacity.groups[index]
            if slot not in self.seats or not 0 <= block < group.num_blocks:
                refuse(f"block {block} of group {index} for slot {slot}")
            self.seats[slot].tables[index][entry] = block
            self._holders[index].setdefault(block, {})[slot] = entry
        for index, source, target in plan.block_copies.tolist():
            size, cells = self._capacity.groups[index].block_tokens, self._cells[index]
            cells[target * size : (target + 1) * size] = cells[source * size : (source + 1) * size]

    def _keep_images(self, plan: StepPlan) -> None:
        for digest in plan.dropped_media:
            if self.images.pop(digest, None) is None:
                refuse(f"image {digest} is dropped but is not here")
        for item in plan.encode:
            if item.digest in self.images or not self._is_whole(item):
                refuse(f"image {item.digest} of {item.num_tokens} vectors")
            self.images[item.digest] = item.num_tokens
            self.encoded += 1
        if sum(-(-n // self._capacity.tile_tokens) for n in self.images.values()) > self._capacity.image_tiles:
            refuse("more images than the encoder's cache holds")

    def _is_whole(self, item: Encode) -> bool:
        if self._capacity.grids:
            return len(item.grid) == 2 and item.grid[0] * item.grid[1] == item.num_tokens > 0
        return item.num_tokens > 0 and item.num_tokens % self._capacity.tile_tokens == 0 and not item.grid

    def _check_rows(self, plan: StepPlan) -> list[Row]:
        logprobs = set(plan.want_logprobs.tolist())
        steady = plan.decode_slots.tolist()
        if not logprobs <= set(steady):
            refuse("want_logprobs names slots that do not decode")
        rows = [Row(slot, 1, None, 0, WITH_LOGPROBS if slot in logprobs else Want.TOKEN) for slot in steady]
        rows += plan.rows
        if len({row.slot for row in rows}) != len(rows):
            refuse("two rows of one slot")
        if sum(row.num_tokens for row in rows) > self._capacity.max_step_tokens:
            refuse("more tokens than the step holds")
        if not set(plan.masked.tolist()) <= {row.slot for row in rows if int(row.want) & TOKEN}:
            refuse("a mask for a row that draws nothing")
        for row in rows:
            self._check_row(row)
        return rows

    def _check_row(self, row: Row) -> None:
        seat = self.seats.get(row.slot)
        if seat is None:
            refuse(f"a row of slot {row.slot}, which nobody has")
            return
        if row.num_tokens < 1:
            refuse("a row of no tokens")
        if row.tokens is None:
            if seat.last is None and not seat.failed:
                refuse(f"slot {row.slot} has drawn nothing to go on from")
            if row.num_tokens > 1 + self._capacity.max_drafts:
                refuse("more drafts than it makes")
            return
        if len(row.tokens) != row.num_tokens or (not seat.fresh and row.start != seat.length):
            refuse(f"a chunk of slot {row.slot} at {row.start}, where {seat.length} are done")
        if row.targets is not None and len(row.targets) != row.num_tokens:
            refuse("targets that do not match the tokens")
        if row.turns is not None and (not self._capacity.grids or row.turns.shape != (3, row.num_tokens)):
            refuse(f"turns of {row.turns.shape} for {row.num_tokens} tokens")
        for part in row.embeds:
            if part.start + part.count > self.images.get(part.digest, 0) or min(part.count - 1, part.start) < 0:
                refuse(f"vectors of image {part.digest} that are not there")
            if not 0 <= part.offset <= row.num_tokens - part.count:
                refuse("an image that does not lie in its row")
            if self._capacity.ahead and part.start + part.count != self.images[part.digest]:
                refuse("a chunk that ends within an image whose tokens see each other")

    # ---- the arithmetic

    def feed(self, seat: Seat, slot: int, tokens: list[int], places: list[int] | None = None) -> list[int]:
        """Runs tokens from the seat's length on; what each sees afterwards, summed over groups. `places`: of each."""
        start = seat.length
        if places is None:
            places = [start + offset + seat.init.turn_shift for offset in range(len(tokens))]
        if start + len(tokens) > self._capacity.max_model_tokens:
            refuse(f"position {start + len(tokens) - 1} lies beyond the context")
        totals = [0] * len(tokens)
        for index, group in enumerate(self._capacity.groups):
            self._feed_group(index, group, seat, slot, list(zip(tokens, places, strict=True)), totals)
        seat.length += len(tokens)
        seat.fresh = False
        return totals

    def _feed_group(
        self, index: int, group: KVGroup, seat: Seat, slot: int, tokens: list[tuple[int, int]], totals: list[int]
    ) -> None:
        size, window, start = group.block_tokens, group.window_tokens, seat.length
        table, cells = seat.tables[index], self._cells[index]
        low = 0 if window is None else max(0, start - window + 1)
        seen = [cells[table[p // size] * size + p % size] for p in range(low, start)]
        if None in seen:
            refuse(f"slot {slot} reads a position that nobody wrote")
        total = sum(seen)  # type: ignore[arg-type]
        for entry in range(start // size, (start + len(tokens) - 1) // size + 1):
            self._check_owner(index, group, slot, entry, table)
        for offset, (token, place) in enumerate(tokens):
            position = start + offset
            if window is not None and position - window >= low:
                total -= seen[position - window - low]  # type: ignore[operator]
            code = cell(token, place, seat.salt + index, total, self._poison)
            total += code
            seen.append(code)
            cells[table[position // size] * size + position % size] = code
            totals[offset] += total

    def _check_owner(self, index: int, group: KVGroup, slot: int, entry: int, table: dict[int, int]) -> None:
        """Nobody writes to a block that another slot can still see."""
        if entry not in table:
            refuse(f"slot {slot} writes to entry {entry} of group {group.name}, which has no block")
        for other, at in self._holders[index][table[entry]].items():
            if other == slot and at == entry:
                continue
            behind = self.seats[other].length - (group.window_tokens or 0) + 1
            if group.window_tokens is None or (at + 1) * group.block_tokens > behind:
                refuse(f"block {table[entry]} is written by slot {slot} and held by slot {other}")

    def spoil(self, seat: Seat, count: int) -> None:
        """Rejected drafts leave numbers behind the sequence's end, which nobody may ever read."""
        for index, group in enumerate(self._capacity.groups):
            for position in range(seat.length, seat.length + count):
                entry, offset = divmod(position, group.block_tokens)
                if entry not in seat.tables[index]:
                    refuse(f"no block for a draft at {position}")
                self._cells[index][seat.tables[index][entry] * group.block_tokens + offset] = 12345

    def sampled(self) -> None:
        self._unsampled = None

    def check_failure(self, step: int) -> None:
        if self._fail_at is not None and step >= self._fail_at:
            raise RuntimeError(f"the device failed in step {step}")


@dataclass(slots=True)
class FakePending:
    runner: FakeRunner
    plan: StepPlan
    rows: list[Row]
    free_at: float
    done: StepResult | None = None
    drawn: list[tuple[int, int, list[int]]] = field(default_factory=list)
    extras: dict[tuple[int, int], RowExtras] = field(default_factory=dict)

    def result(self) -> StepResult:
        self.runner.check_failure(self.plan.step)
        if self.done is None:
            raise ValueError("the step was never sampled, or its result was taken before")
        wait = self.free_at - time.monotonic() if self.free_at else 0.0
        if wait > 0:
            time.sleep(wait)
        done, self.done = self.done, None
        return done

    def sample(self, masks: dict[int, bytes]) -> None:
        if set(masks) != set(self.plan.masked.tolist()) or not masks:
            refuse("masks that do not match the plan")
        self.compute(masks)
        self.runner.sampled()

    def compute(self, masks: dict[int, bytes]) -> None:
        for row in self.rows:
            seat = self.runner.seats[row.slot]
            if row.tokens is None:
                self._decode(row, seat, masks.get(row.slot))
            else:
                self._chunk(row, seat, row.tokens.tolist(), masks.get(row.slot))
        width = max((len(tokens) for _, _, tokens in self.drawn), default=1) or 1
        tokens = np.zeros((len(self.drawn), width), np.int32)
        for i, (_, _, row_tokens) in enumerate(self.drawn):
            tokens[i, : len(row_tokens)] = row_tokens
        self.done = StepResult(
            np.asarray([slot for slot, _, _ in self.drawn], np.int32),
            np.asarray([epoch for _, epoch, _ in self.drawn], np.int32),
            tokens,
            np.asarray([len(row_tokens) for _, _, row_tokens in self.drawn], np.int32),
            self.extras,
        )

    def _chunk(self, row: Row, seat: Seat, tokens: list[int], mask: bytes | None) -> None:
        seat.length = row.start
        for part in row.embeds:
            vectors = [vector(part.digest, part.start + i) for i in range(part.count)]
            tokens[part.offset : part.offset + part.count] = vectors
        places = None if row.turns is None else [place(*turns) for turns in row.turns.T.tolist()]
        seen = self.runner.feed(seat, row.slot, tokens, places)
        drawn: list[int] = []
        if int(row.want) & TOKEN:
            drawn = self._draw(seat, seen[-1], mask)
            self.drawn.append((row.slot, seat.init.epoch, drawn))
        self._note_extras(row, seat, seen, [seen[-1]], drawn)

    def _decode(self, row: Row, seat: Seat, mask: bytes | None) -> None:
        if seat.last is None:
            # A row whose draw failed goes on harmlessly under overlap; its sequence has ended.
            self.drawn.append((row.slot, seat.init.epoch, []))
            return
        accepted = 1 + mix(seat.length, seat.init.seed & MASK30, 3) % row.num_tokens
        seens: list[int] = []
        drawn: list[int] = []
        while len(drawn) < accepted and seat.last is not None:
            seens += self.runner.feed(seat, row.slot, [seat.last])
            drawn += self._draw(seat, seens[-1], mask)
        self.runner.spoil(seat, row.num_tokens - len(seens))
        self.drawn.append((row.slot, seat.init.epoch, drawn))
        self._note_extras(row, seat, seens, seens, drawn)

    def _draw(self, seat: Seat, seen: int, mask: bytes | None) -> list[int]:
        if seen >= POISON:
            seat.last, seat.failed = None, True
            return []
        token = seat.chooser.choose(seen, seat.length, seat.history, mask)
        seat.last = token
        if seat.init.history is not None:
            seat.history += weight_of(token, False)
        return [token]

    def _note_extras(self, row: Row, seat: Seat, seen: list[int], drawn_from: list[int], drawn: list[int]) -> None:
        if not int(row.want) & ~TOKEN:
            return
        extras, vocab, top = RowExtras(), seat.chooser.vocab_size, seat.init.top_logprobs
        if row.want & Want.LOGPROBS and drawn:
            extras.logprobs = np.asarray([logprob(s, t) for s, t in zip(drawn_from, drawn, strict=False)], np.float32)
            extras.top_ids, extras.top_logprobs = _best(drawn_from[: len(drawn)], vocab, top)
        if row.want & Want.PROMPT_LOGPROBS and row.targets is not None:
            pairs = [(s, t) for s, t in zip(seen, row.targets.tolist(), strict=True) if t >= 0]
            values = [float("nan") if s >= POISON else logprob(s, t) for s, t in pairs]
            extras.prompt_logprobs = np.asarray(values, np.float32)
            extras.prompt_top_ids, extras.prompt_top_logprobs = _best([s for s, _ in pairs], vocab, top)
        if row.want & Want.LOGITS:
            extras.logits = np.asarray([[logprob(s, v) for v in range(vocab)] for s in seen], np.float32)
        if row.want & Want.HIDDEN:
            extras.hidden = np.asarray([[logprob(s, -d) for d in range(HIDDEN_SIZE)] for s in seen], np.float32)
        if row.want & Want.POOL:
            extras.pool = np.asarray([logprob(seen[-1], 1)], np.float32)
        self.extras[(row.slot, seat.init.epoch)] = extras


def _best(seen: list[int], vocab: int, top: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not top:
        return None, None
    table = np.asarray([[logprob(s, v) for v in range(vocab)] for s in seen], np.float32).reshape(len(seen), vocab)
    ids = np.argsort(-table, axis=1, kind="stable")[:, :top].astype(np.int32)
    return ids, np.take_along_axis(table, ids, 1)


MaskOf = Callable[[list[int]], bytes]


def dream(
    request: Request, capacity: Capacity, seed: int, *, limit: int | None = None, mask: MaskOf | None = None,
    poison: int = -1,
) -> tuple[list[int], Finish]:
    """What FakeRunner must draw for a request, from its token list alone: no cache, no batch, no scheduler.

    `limit`: the most tokens prompt and answer may have; `mask` maps the answer so far to the allowed tokens.
    """
    tokens = list(request.prompt_ids)
    prompt, stop, sampling = len(tokens), request.stop, request.sampling
    base = capacity.rope.for_prompt(prompt) if capacity.rope is not None else 0.0
    salt = mix(hash(base) & MASK30, len(request.adapter), sum(request.adapter.encode()))
    chooser = Chooser(capacity.vocab_size, sampling, seed, prompt + stop.min_new_tokens, stop.token_ids)
    most = min(prompt + stop.max_new_tokens, capacity.max_model_tokens if limit is None else limit)
    codes: list[list[int]] = [[] for _ in capacity.groups]
    vectors = {im.offset + i: vector(im.digest, i) for im in request.media for i in range(im.num_tokens)}
    while True:
        shown = [vectors.get(position, token) for position, token in enumerate(tokens)]
        told = list(zip(shown, _dream_places(request, len(tokens)), strict=True))
        seen = sum(_dream_group(i, g, salt, told, codes[i], poison) for i, g in enumerate(capacity.groups))
        if seen >= POISON:
            return tokens[prompt:], Finish.ERROR
        history = sum(weight_of(t, i < prompt) for i, t in enumerate(tokens)) if sampling.needs_history else 0
        token = chooser.choose(seen, len(tokens), history, mask(tokens[prompt:]) if mask else None)
        tokens.append(token)
        if token in stop.token_ids and len(tokens) - 1 >= prompt + stop.min_new_tokens:
            return tokens[prompt:], Finish.STOP
        if len(tokens) >= most:
            return tokens[prompt:], Finish.LENGTH


def _dream_places(request: Request, count: int) -> list[int]:
    """Token after token: text counts on, a picture counts its rows and columns from where it begins."""
    images = {image.offset: image for image in request.media if image.grid}
    places: list[int] = []
    at = 0
    while len(places) < count:
        image = images.get(len(places))
        if image is None:
            places.append(place(at, at, at))
            at += 1
            continue
        rows, columns = image.grid
        places += [place(at, at + row, at + column) for row in range(rows) for column in range(columns)]
        at += max(rows, columns)
    return places[:count]


def _dream_group(
    index: int, group: KVGroup, salt: int, tokens: list[tuple[int, int]], codes: list[int], poison: int
) -> int:
    """Extends the group's cells to all tokens; the sum of those the last one sees."""
    window = group.window_tokens or len(tokens) + 1
    for position in range(len(codes), len(tokens)):
        seen = sum(codes[max(0, position - window + 1) : position])
        codes.append(cell(*tokens[position], salt + index, seen, poison))
    return sum(codes[max(0, len(tokens) - window) :])
