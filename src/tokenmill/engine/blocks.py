"""One KV group's blocks: reference counts, the free list, the prefix index and its eviction.

A block is in exactly one of three states: held (count > 0), cached (count 0, but indexed by its key: a later prompt may
take it, and it is evicted, oldest first, when nothing else is free), or free. `num_free` counts the last two. Blocks
are shared without copies: only full blocks are ever indexed, and nobody writes to a full block.

Keys form a chain: key = blake2b(parent key, tokens, images that lie in the block), 128 bits, from a root that names
everything else a block's content depends on. So one key stands for a whole prefix.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence as Seq
from hashlib import blake2b

import numpy as np

from tokenmill.engine.contract import I32
from tokenmill.types import MediaRef

KEY_BYTES = 16


def root_key(*salt: str | float) -> bytes:
    """The chain's start: adapter, rope base, capacity's salt, the request's own salt. Parts cannot run together."""
    digest = blake2b(digest_size=KEY_BYTES)
    for part in salt:
        raw = part.encode() if isinstance(part, str) else struct.pack("<d", part)
        digest.update(struct.pack("<I?", len(raw), isinstance(part, str)) + raw)
    return digest.digest()


def extend_keys(keys: list[bytes], root: bytes, tokens: I32, block_tokens: int, media: tuple[MediaRef, ...]) -> None:
    """Appends the keys of all full blocks of `tokens` that `keys` does not hold yet."""
    for index in range(len(keys), len(tokens) // block_tokens):
        start = index * block_tokens
        digest = blake2b(keys[-1] if keys else root, digest_size=KEY_BYTES)
        digest.update(tokens[start : start + block_tokens].tobytes())
        for image in media:
            if image.offset < start + block_tokens and start < image.offset + image.num_tokens:
                digest.update(f"|{image.digest}@{start - image.offset}{image.grid or ''}".encode())
        keys.append(digest.digest())


class BlockPool:
    """Blocks 0..num_blocks-1 of one group. Not thread-safe: the scheduler's thread owns it.

    Mutates on allocate, take, release, publish; `find`, `num_free` and `idle_among` only read.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.refs = np.zeros(num_blocks, np.int32)
        self.indexed = np.zeros(num_blocks, np.bool_)
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        self._top = num_blocks
        self._cached: OrderedDict[int, bytes] = OrderedDict()
        self._index: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could give out: free ones and cached ones."""
        return self._top + len(self._cached)

    @property
    def num_indexed(self) -> int:
        return len(self._index)

    def allocate(self, count: int) -> I32:
        """`count` blocks with one reference each; the caller has compared with `num_free`."""
        if count > self._top:
            self._evict(count - self._top)
        self._top -= count
        blocks = self._free[self._top : self._top + count].copy()
        self.refs[blocks] = 1
        return blocks

    def _evict(self, count: int) -> None:
        for _ in range(count):
            block, key = self._cached.popitem(last=False)
            self._forget(block, key)
            self._push(block)

    def _forget(self, block: int, key: bytes) -> None:
        del self._index[key]
        del self._keys[block]
        self.indexed[block] = False

    def _push(self, block: int) -> None:
        self._free[self._top] = block
        self._top += 1

    def find(self, key: bytes) -> int:
        """The block indexed under `key`, or -1."""
        return self._index.get(key, -1)

    def idle_among(self, blocks: Seq[int]) -> int:
        """How many of these blocks nobody holds: taking them lowers `num_free` by as many."""
        return sum(1 for block in blocks if block in self._cached)

    def take(self, blocks: Seq[int]) -> None:
        """One more reference on indexed blocks (a prefix hit)."""
        for block in blocks:
            if self.refs[block] == 0:
                del self._cached[block]
            self.refs[block] += 1

    def release(self, blocks: I32) -> None:
        """One reference less on each; the last in the list is evicted first, for it is useless without the others."""
        self.refs[blocks] -= 1
        for block in blocks[::-1].tolist():
            if self.refs[block]:
                continue
            if self.indexed[block]:
                self._cached[block] = self._keys[block]
            else:
                self._push(block)

    def publish(self, block: int, key: bytes) -> None:
        """Indexes a held, full, committed block; a key that is known already keeps the block it has."""
        if key in self._index or self.indexed[block]:
            return
        self._index[key] = block
        self._keys[block] = key
        self.indexed[block] = True

    def clear_index(self) -> None:
        """Forgets every prefix (new weights): cached blocks become free, held ones stay with their holders."""
        self._evict(len(self._cached))
        for block, key in list(self._keys.items()):
            self._forget(block, key)
