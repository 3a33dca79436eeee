"""The central seams: what everything above sees of an engine, and what an engine sees of compute.

Imports types only, never torch. `Engine` is seam A and `Runner` seam B of docs/design.md. Plans and results hold
scalars, bytes and numpy arrays of the dtypes named here, never a tensor and never an object of another room, so that
the same plan is rank 0's broadcast, a trace record and a test fixture.

Order inside one plan: released slots first, then new slots, new blocks, block copies, dropped images, encodes, then
rows and decode slots. A slot may be released and given again in one plan. The runner owns tensors by slot, the
scheduler owns meaning.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenmill.types import Request, Sampling, StepOutput, Want

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


# ---------------------------------------------------------------- what the runner can do


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that share one block table. A window group frees blocks behind its window."""

    name: str
    layers: int
    block_tokens: int
    bytes_per_block: int
    num_blocks: int
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class StepCost:
    """Microseconds of a step: fixed, per row, per token, per token and 1,000 tokens of its context."""

    step_us: float = 0.0
    row_us: float = 0.0
    token_us: float = 0.0
    token_kcontext_us: float = 0.0


@dataclass(frozen=True, slots=True)
class RopeBase:
    """Which rope base a request gets from its prompt's length, once, for its whole life (dynamic NTK and kin).

    kind "dynamic": base' = base * (factor * S / P - (factor - 1)) ** (K / (K - 2)) for S > P = `max_position`.
    kind "qwen": alpha = max(2 ** ceil(log2(S / P) + 1) - 1, 1), base' = base * alpha ** (K / (K - 2)).
    kind "longrope": the short factors (0.0) up to `max_position`, the long ones (1.0) beyond.
    """

    kind: str
    base: float
    factor: float
    max_position: int
    head_dim: int

    def for_prompt(self, prompt_tokens: int) -> float:
        """The number that goes into `SlotInit.rope_base` and into the block keys' salt."""
        over = prompt_tokens / self.max_position
        exponent = self.head_dim / (self.head_dim - 2)
        if self.kind == "longrope":
            return float(over > 1.0)
        if over <= 1.0:
            return self.base
        if self.kind == "dynamic":
            return float(self.base * (self.factor * over - (self.factor - 1.0)) ** exponent)
        if self.kind == "qwen":
            alpha = max(2.0 ** np.ceil(np.log2(over) + 1.0) - 1.0, 1.0)
            return float(self.base * alpha**exponent)
        raise ValueError(f"unknown rope base kind {self.kind!r}")


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the runner offers. `max_rows` is also the number of slots; `max_step_tokens` the most tokens in one plan.

    `max_drafts` is how many tokens beside the first a FROM_DEVICE row may bring. Images are kept as vectors, in tiles
    of `tile_tokens` vectors of `vector_bytes` each, `encoder_cache_bytes` in all (0: text only). `salt` names
    everything but the tokens that decides a block's content (KV kind, weights version) and goes into every block key.
    `generates`: False where a model has no logits, only a score of a prompt. `grids`: an image has rows and columns, by
    which its tokens are turned; it may end within a tile, and text behind it goes on from its longer side. `ahead`: an
    image's tokens see each other, so that no chunk may end within one.
    """

    groups: tuple[KVGroup, ...]
    max_rows: int
    max_step_tokens: int
    max_model_tokens: int
    vocab_size: int
    max_drafts: int = 0
    encoder_cache_bytes: int = 0
    tile_tokens: int = 0
    vector_bytes: int = 0
    cost: StepCost = StepCost()
    rope: RopeBase | None = None
    salt: str = ""
    generates: bool = True
    grids: bool = False
    ahead: bool = False

    @property
    def image_tiles(self) -> int:
        """Tiles of images that are kept at once."""
        return self.encoder_cache_bytes // (self.tile_tokens * self.vector_bytes) if self.encoder_cache_bytes else 0


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class SlotInit:
    """A sequence takes a seat. Travels once.

    `history`: the whole token list so far, present only when penalties or a drafter need it (a prefix hit never shows
    the runner those tokens); `prompt_tokens` says how many of a history are prompt, the rest were drawn before a
    preemption. `min_tokens`: `stop_ids` may not be drawn at positions below it. `seed` is never None here.
    `turn_shift`: how far tokens behind the prompt's last image are turned beyond their position (grids; else 0).
    """

    slot: int
    epoch: int
    sampling: Sampling
    seed: int
    prompt_tokens: int
    rope_base: float = 0.0
    turn_shift: int = 0
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    top_logprobs: int = 0
    adapter: str = ""
    history: I32 | None = None


@dataclass(frozen=True, slots=True)
class Encode:
    """An image to encode: its digest, the file of its pixels, how many vectors it becomes, and in what grid."""

    digest: str
    source: str
    num_tokens: int
    grid: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Embeds:
    """Encoder output that fills positions of a row.

    `count` vectors of `digest` from `start`, at `offset` in the row.
    """

    offset: int
    digest: str
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence's part in one step where it is not the steady one: chunk, last chunk, verification, scoring.

    `tokens` None means FROM_DEVICE: the runner uses what it drew last (and its drafts), at most `num_tokens` positions
    from its own length; then `start` is not read. `want` NONE runs the tokens and keeps nothing but the cache.
    `targets[i]` is the prompt token that follows tokens[i] (-1: none), present where PROMPT_LOGPROBS is wanted.
    `turns` int32 [3, num_tokens]: what each token is turned by along time, rows and columns, in place of its position,
    where the last image's grid is not yet behind it (None: position and the slot's `turn_shift`).
    """

    slot: int
    num_tokens: int
    tokens: I32 | None
    start: int
    want: Want
    targets: I32 | None = None
    embeds: tuple[Embeds, ...] = ()
    turns: I32 | None = None


NO_I32: I32 = np.zeros(0, np.int32)


@dataclass(slots=True)
class StepPlan:
    """One step's work.

    decode_slots int32 [n]: slots that advance by the one token just drawn on the device (the steady state).
    new_blocks int32 [n, 4]: (group, slot, index in the slot's table, block).
    released_slots int32 [n]. block_copies int32 [n, 3]: (group, source, destination).
    dropped_media: digests of images whose vectors go; encode: images to encode, behind the drops. masked int32 [n]:
    slots whose grammar mask comes with `Pending.sample`. want_logprobs: slots among decode_slots that also want
    LOGPROBS.
    """

    step: int
    decode_slots: I32 = field(default_factory=lambda: NO_I32)
    rows: list[Row] = field(default_factory=list)
    new_slots: list[SlotInit] = field(default_factory=list)
    new_blocks: I32 = field(default_factory=lambda: np.zeros((0, 4), np.int32))
    released_slots: I32 = field(default_factory=lambda: NO_I32)
    block_copies: I32 = field(default_factory=lambda: np.zeros((0, 3), np.int32))
    dropped_media: list[str] = field(default_factory=list)
    encode: list[Encode] = field(default_factory=list)
    masked: I32 = field(default_factory=lambda: NO_I32)
    want_logprobs: I32 = field(default_factory=lambda: NO_I32)

    def __bool__(self) -> bool:
        """Falsy only when wholly empty: slots, copies, releases and encodes count too."""
        return bool(
            self.rows or self.new_slots or self.encode or self.dropped_media or len(self.decode_slots)
            or len(self.new_blocks) or len(self.released_slots) or len(self.block_copies)
        )


@dataclass(slots=True)
class RowExtras:
    """What a row wanted beside its token, on the host.

    logprobs: per drawn token float32 and, for the best `top_logprobs`, ids int32 and values float32 [k, top].
    prompt_logprobs: the same over the row's `targets` (positions with target -1 left out).
    logits float32 [positions, V]; hidden float32 [positions, D]; pool float32 [n].
    """

    logprobs: NDArray[np.float32] | None = None
    top_ids: I32 | None = None
    top_logprobs: NDArray[np.float32] | None = None
    prompt_logprobs: NDArray[np.float32] | None = None
    prompt_top_ids: I32 | None = None
    prompt_top_logprobs: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None
    hidden: NDArray[np.float32] | None = None
    pool: NDArray[np.float32] | None = None


@dataclass(slots=True)
class StepResult:
    """What a step drew. One entry per row that wanted TOKEN: decode_slots first, in plan order, then rows.

    slots, epochs int32 [n]; tokens int32 [n, 1 + drafts]; counts int32 [n]: tokens valid in each row (0: the row's
    logits were not finite: it failed and drew nothing). `extras` by (slot, epoch) also holds rows that wanted no token.
    """

    slots: I32
    epochs: I32
    tokens: I32
    counts: I32
    extras: dict[tuple[int, int], RowExtras] = field(default_factory=dict)


class Pending(Protocol):
    """A step under way."""

    def result(self) -> StepResult:
        """Waits for the step and returns what it drew. Called once."""
        ...

    def sample(self, masks: dict[int, bytes]) -> None:
        """Queues the sampling of a plan with `masked` rows: allowed-token bit masks by slot, LSB first, V bits.

        Called once, only for plans whose `masked` is not empty, while the forward runs.
        """
        ...


class Runner(Protocol):
    """Compute, as the scheduler sees it. Decides nothing; refuses what it cannot do (ValueError).

    `run` queues a step and returns at once; steps run in order. `control` is drained and ordered with plans: it knows
    `describe`, `sleep` (level) and `wake` (tags); the last two return the parts still asleep.
    """

    def capacity(self) -> Capacity: ...

    def run(self, plan: StepPlan) -> Pending: ...

    def control(self, op: str, **arguments: Any) -> Any: ...

    def close(self) -> None: ...


# ---------------------------------------------------------------- the engine

# What of an engine can sleep, by the names of LMDeploy's `tags`.
WEIGHTS, KV_CACHE = "weights", "kv_cache"
PARTS = (WEIGHTS, KV_CACHE)


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot. Blocks are of the first group; totals count since start. `asleep`: which of `PARTS` are."""

    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    block_tokens: int = 0
    max_rows: int = 0
    max_model_tokens: int = 0
    steps: int = 0
    requests: int = 0
    finished: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    plan_us: float = 0.0
    commit_us: float = 0.0
    alive: bool = True
    asleep: tuple[str, ...] = ()


@dataclass(slots=True)
class StepOutputs:
    """The one message the core emits a step.

    handles int64 [n], counts int32 [n] tokens each, tokens int32 [sum], finishes int8 [n] (-1: goes on, else index into
    `list(Finish)`). `extras` by handle: StepOutput fields that few rows have (usage, error, logprobs, arrays).
    """

    handles: I64
    counts: I32
    tokens: I32
    finishes: NDArray[np.int8]
    extras: dict[int, dict[str, Any]] = field(default_factory=dict)


class Engine(Protocol):
    """What everything above sees: token ids in and out.

    Implementations: local core (own process wherever there is a GPU; in-process on CPU and in tests), replica pool,
    remote client, EchoEngine.
    """

    def generate(self, request: Request) -> AsyncIterator[StepOutput]:
        """Outputs until one has `finish`. Closing the iterator early aborts the request.

        Raises RequestError where the request can never run (too long, duplicate live id) or the queue is full (429).
        """
        ...

    async def score(self, request: Request) -> StepOutput:
        """Runs a request to its end and returns everything as one output (scoring, pooling)."""
        ...

    def abort(self, request_id: str) -> None:
        """Ends a request with finish ABORT within a step; unknown ids are ignored."""
        ...

    async def stats(self) -> Stats: ...

    async def sleep(self, level: int = 1) -> None:
        """Ends what runs with finish ABORT and gives memory back: the cache, and weights to the host (level 1) or away
        (level 2). Until all is awake again requests are refused (503). Raises RequestError 501 where it cannot."""
        ...

    async def wakeup(self, tags: tuple[str, ...] = ()) -> None:
        """Wakes the named parts, all where none is named. Raises CapacityError, FormatError where one cannot wake."""
        ...

    async def close(self) -> None: ...
