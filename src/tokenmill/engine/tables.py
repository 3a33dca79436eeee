"""Which blocks each slot holds, per KV group: growth, windows, prefix hits, publishing, release.

A table entry i of a group covers positions [i * S, (i + 1) * S). `have` is the next entry to fill, `first` the first
one still held: entries before it lie behind the window and are gone. Every entry that is filled goes into `changes`,
which the plan carries to the runner; entries given back are not told, the runner never looks behind a window.
Freed blocks may be given out in the same plan: steps run in order, so the former reader has read by then.
"""

from __future__ import annotations

from math import lcm

import numpy as np

from tokenmill.engine.blocks import BlockPool
from tokenmill.engine.contract import I32, I64, Capacity, KVGroup
from tokenmill.engine.sequence import Sequence
from tokenmill.errors import CapacityError


class GroupTable:
    """One group's pool and tables. `spread` is the most positions a row may be uncertain by (drafts, two steps)."""

    def __init__(self, index: int, group: KVGroup, rows: int, max_tokens: int, spread: int) -> None:
        self.index = index
        self.block_tokens = group.block_tokens
        self.window = group.window_tokens
        self.pool = BlockPool(group.num_blocks)
        self.table: I32 = np.zeros((rows, -(-max_tokens // group.block_tokens) + 1), np.int32)
        self.have: I64 = np.zeros(rows, np.int64)
        self.first: I64 = np.zeros(rows, np.int64)
        self.published: I64 = np.zeros(rows, np.int64)
        self.covered: I64 = np.zeros(rows, np.int64)
        self.window_blocks = group.num_blocks
        if self.window is not None:
            self.window_blocks = -(-(self.window + spread) // self.block_tokens) + 1
            if self.window_blocks > group.num_blocks:
                raise CapacityError(
                    f"KV group {group.name!r} has {group.num_blocks} blocks of {self.block_tokens} tokens; its window "
                    f"of {self.window} tokens needs {self.window_blocks}: give the cache more memory"
                )

    def missing(self, slots: I64, upto: I64) -> I64:
        """Blocks each slot lacks for its first `upto` positions."""
        lack: I64 = np.maximum(-(-upto // self.block_tokens) - self.have[slots], 0)
        return lack

    def owed(self, upto: int, have: int, first: int) -> int:
        """Blocks a sequence will still need for `upto` positions, given that a window never holds more than its own."""
        need = -(-upto // self.block_tokens) - have
        if self.window is not None:
            need = min(need, self.window_blocks - (have - first))
        return max(need, 0)

    def room(self, slot: int) -> int:
        """Positions the slot could cover if it got every free block."""
        return (int(self.have[slot]) + self.pool.num_free) * self.block_tokens

    def grow(self, slots: I64, counts: I64) -> I32:
        """Appends `counts` blocks to each slot's table; the changes, int32 [n, 4]."""
        if len(slots) == 1:
            return self._grow_one(int(slots[0]), int(counts[0]))
        owners = np.repeat(slots, counts)
        firsts = np.repeat(np.cumsum(counts) - counts, counts)
        entries = self.have[owners] + np.arange(len(owners)) - firsts
        blocks = self.pool.allocate(len(owners))
        self.table[owners, entries] = blocks
        self.have[slots] += counts
        self.covered[slots] = self.have[slots] * self.block_tokens
        return self._changes(owners, entries, blocks)

    def _grow_one(self, slot: int, count: int) -> I32:
        """The same for one slot, which chunks are: without arithmetic over arrays of one."""
        start = int(self.have[slot])
        end = start + count
        blocks = self.pool.allocate(count)
        self.table[slot, start:end] = blocks
        self.have[slot] = end
        self.covered[slot] = end * self.block_tokens
        return self._changes(slot, np.arange(start, end), blocks)

    def _changes(self, owners: I64 | int, entries: I64, blocks: I32) -> I32:
        changes = np.empty((len(blocks), 4), np.int32)
        changes[:, 0] = self.index
        changes[:, 1] = owners
        changes[:, 2] = entries
        changes[:, 3] = blocks
        return changes

    def adopt(self, slot: int, first: int, blocks: list[int]) -> I32:
        """A prefix hit: `blocks` from entry `first` on, shared."""
        self.pool.take(blocks)
        end = first + len(blocks)
        self.table[slot, first:end] = blocks
        self.first[slot], self.have[slot], self.published[slot] = first, end, end
        self.covered[slot] = end * self.block_tokens
        return self._changes(slot, np.arange(first, end), np.asarray(blocks, np.int32))

    def drop_behind(self, slots: I64, next_positions: I64) -> bool:
        """Gives back blocks that no position from `next_positions` on can see; whether there were any."""
        assert self.window is not None
        ends = (next_positions - self.window + 1) // self.block_tokens
        rows = (ends > self.first[slots]).nonzero()[0].tolist()
        for row in rows:
            slot = int(slots[row])
            end = min(int(ends[row]), int(self.have[slot]))
            self.pool.release(self.table[slot, self.first[slot] : end])
            self.first[slot] = end
        return bool(rows)

    def release(self, slot: int) -> None:
        self.pool.release(self.table[slot, self.first[slot] : self.have[slot]])
        self.first[slot] = self.have[slot] = self.published[slot] = self.covered[slot] = 0

    def publish(self, slot: int, full: int, keys: list[bytes]) -> None:
        """Indexes the held entries below `full`, whose values are committed."""
        for entry in range(max(int(self.published[slot]), int(self.first[slot])), full):
            self.pool.publish(int(self.table[slot, entry]), keys[entry])
        self.published[slot] = max(full, int(self.published[slot]))


class Hit:
    """The longest prefix valid in all groups: its tokens, and per group the first entry and the blocks from there."""

    def __init__(self, tokens: int, parts: list[tuple[int, list[int]]]) -> None:
        self.tokens = tokens
        self.parts = parts


class Tables:
    """All groups together. `version` goes up whenever room may have appeared or a prefix was indexed."""

    def __init__(self, capacity: Capacity, rows: int) -> None:
        spread = 2 * (capacity.max_drafts + 1)
        self.groups = [
            GroupTable(i, g, rows, capacity.max_model_tokens, spread) for i, g in enumerate(capacity.groups)
        ]
        self.windowed = [g for g in self.groups if g.window is not None]
        self.full = [g for g in self.groups if g.window is None]
        self.step = lcm(*(g.block_tokens for g in self.groups))
        self.version = 0
        self._changes: list[I32] = []

    @property
    def most_tokens(self) -> int | None:
        """Tokens one sequence can hold with the whole cache to itself; None where only windows bound it."""
        return min((g.pool.num_blocks * g.block_tokens for g in self.full), default=None)

    def changes(self) -> I32:
        """What the runner must be told since the last call, int32 [n, 4]."""
        told, self._changes = self._changes, []
        return np.concatenate(told) if told else np.zeros((0, 4), np.int32)

    def cover(self, slots: I64, upto: I64) -> bool:
        """Blocks for the first `upto` positions of each slot, all or none; False where there are too few."""
        short = [(g, slots[rows], upto[rows]) for g in self.groups if (rows := upto > g.covered[slots]).any()]
        counts = [(g, some, g.missing(some, until)) for g, some, until in short]
        if any(int(lack.sum()) > g.pool.num_free for g, _, lack in counts):
            return False
        self._changes.extend(g.grow(some, lack) for g, some, lack in counts)
        return True

    def forget_prefixes(self) -> None:
        """What cached blocks hold is lost."""
        for group in self.groups:
            group.pool.clear_index()
        self.version += 1

    def room(self, slot: int) -> int:
        return min(g.room(slot) for g in self.groups)

    def drop_behind(self, slots: I64, next_positions: I64) -> None:
        for group in self.windowed:
            if group.drop_behind(slots, next_positions):
                self.version += 1

    def release(self, slot: int) -> None:
        for group in self.groups:
            group.release(slot)
        self._forget_changes(slot)
        self.version += 1

    def _forget_changes(self, slot: int) -> None:
        """A slot left before its changes were told must not be told of them."""
        self._changes = [c[c[:, 1] != slot] for c in self._changes]

    def find(self, seq: Sequence) -> Hit:
        """The longest cached prefix of the sequence's tokens that leaves at least one to run."""
        most = len(seq.tokens) - 1
        found: dict[int, list[int]] = {}
        for group in [*self.full, *self.windowed]:
            keys = seq.keys_for(group.block_tokens, seq.tokens)[: most // group.block_tokens]
            blocks: list[int] = []
            for key in keys:
                block = group.pool.find(key)
                if block < 0 and group.window is None:
                    break
                blocks.append(block)
            most = min(most, len(blocks) * group.block_tokens)
            found[group.index] = blocks
        most -= most % self.step
        while most > 0 and not all(self._window_is_there(g, found[g.index], most) for g in self.windowed):
            most -= self.step
        return self._hit(most, found)

    @staticmethod
    def _first_seen(group: GroupTable, tokens: int) -> int:
        return 0 if group.window is None else max(tokens - group.window + 1, 0) // group.block_tokens

    def _window_is_there(self, group: GroupTable, blocks: list[int], tokens: int) -> bool:
        entries = range(self._first_seen(group, tokens), tokens // group.block_tokens)
        return all(blocks[entry] >= 0 for entry in reversed(entries))

    def _hit(self, tokens: int, found: dict[int, list[int]]) -> Hit:
        firsts = [self._first_seen(g, tokens) for g in self.groups]
        parts = [
            (first, found[g.index][first : tokens // g.block_tokens])
            for g, first in zip(self.groups, firsts, strict=True)
        ]
        return Hit(tokens, parts)

    def no_hit(self) -> Hit:
        return Hit(0, [(0, []) for _ in self.groups])

    def fits(self, hit: Hit, upto: int, reserved: list[int]) -> bool:
        """Whether a sequence of `upto` tokens with this hit fits beside what others were promised.

        Hit blocks that nobody holds leave the free count as well.
        """
        for group, (first, blocks), kept in zip(self.groups, hit.parts, reserved, strict=True):
            need = group.owed(upto, first + len(blocks), first) + group.pool.idle_among(blocks)
            if need + kept > group.pool.num_free:
                return False
        return True

    def adopt(self, slot: int, hit: Hit) -> None:
        for group, (first, blocks) in zip(self.groups, hit.parts, strict=True):
            self._changes.append(group.adopt(slot, first, blocks))

    def publish(self, slot: int, seq: Sequence, tokens: I32) -> int:
        """Indexes full blocks among positions that are committed (all but the last token's); the next count to do so.

        `tokens`: the sequence's known tokens.
        """
        next_at = []
        for group in self.groups:
            full = (len(tokens) - 1) // group.block_tokens
            if full > group.published[slot]:
                group.publish(slot, full, seq.keys_for(group.block_tokens, tokens))
                self.version += 1
            next_at.append((full + 1) * group.block_tokens + 1)
        return min(next_at)
