"""Will it fit: weights, KV cache and workspace of a model on a device, from facts alone. Pure; no torch at run time.

Bytes are exact for what is known (parameters, KV bytes of a token) and an upper estimate for workspace. The same table
is printed at start and by `tokenmill plan MODEL --gpu-memory 24GiB --batch 8`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

from tokenmill.errors import CapacityError

if TYPE_CHECKING:
    from tokenmill.models.contract import ModelSpec

GIB = 1 << 30
CONTEXTS = (2048, 8192, 32768)
# Bytes of one weight of a decoder linear: W8 and FP8 carry a scale per output channel (a thousandth, left out);
# W4 an fp16 scale and a 4-bit zero per group of 128.
LINEAR_BYTES = {"fp16": 2.0, "w8": 1.0, "fp8": 1.0, "w4": 0.5 + 2.5 / 128}
OTHER_BYTES = 2.0
# What a CUDA context and its libraries take before the first tensor.
DEVICE_BASE_BYTES = 512 << 20
# Widest tensors alive at once in a decoder block, in units of the hidden size (gate and up, activation, residual,
# norm).
BLOCK_WIDTHS = 16
MOST_FRAC = 0.98
# Tiles of images that are encoded at once, and that are kept as vectors.
IMAGE_BATCH = 8
IMAGE_TILES = {"cuda": 128, "cpu": 32}


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """memory_bytes of the device, the batch that must fit, and what the engine will be started with."""

    memory_bytes: int
    batch: int = 8
    contexts: tuple[int, ...] = CONTEXTS
    memory_frac: float = 0.8
    max_rows: int = 256
    max_step_tokens: int = 8192
    tp: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the batch fits at `context` tokens each. `frac`: the least share of free memory that holds it (None: none
    does); `batch`: how many sequences fit at the largest share.
    """

    context: int
    kv_bytes: int
    frac: float | None
    batch: int

    @property
    def fits(self) -> bool:
        return self.frac is not None


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One weight format with one KV kind. tokens: that fit at the request's share; sequences by context."""

    weights: str
    kv: str
    weight_bytes: int
    token_bytes: int
    tokens: int
    max_context: int
    sequences: dict[int, int]
    verdicts: tuple[Verdict, ...]

    def at(self, context: int) -> Verdict:
        return next(v for v in self.verdicts if v.context == context)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """`fp32_weight_bytes`: what the plain weights take where arithmetic is fp32, as it is on a CPU."""

    request: PlanRequest
    workspace_bytes: int
    fp32_weight_bytes: int = 0
    rows: tuple[PlanRow, ...] = field(default=())

    def row(self, weights: str, kv: str) -> PlanRow:
        return next(r for r in self.rows if (r.weights, r.kv) == (weights, kv))


def memory_plan(
    spec: ModelSpec, kv_bytes: Mapping[str, int], request: PlanRequest, weight_bytes: Mapping[str, int] | None = None
) -> MemoryPlan:
    """Every weight format with every KV kind.

    kv_bytes: K and V of one token and layer by KV kind, of this rank's heads. weight_bytes: by name, replaces the
    formats (at start, the weights that were loaded).
    """
    known = dict(weight_bytes) if weight_bytes else {f: weights_bytes(spec, f, request.tp) for f in LINEAR_BYTES}
    work = workspace_bytes(spec, request.max_rows, request.max_step_tokens) + image_cache_bytes(spec)
    rows = [
        _row(_Pair(name, size, kv, per_layer), spec, work, request)
        for name, size in known.items() for kv, per_layer in kv_bytes.items()
    ]
    fp32 = ceil((spec.linear_params + spec.other_params) * 4 / request.tp)
    return MemoryPlan(request, work, fp32, tuple(rows))


def weights_bytes(spec: ModelSpec, weight_format: str, tp: int = 1) -> int:
    """Bytes of a rank's weights: linears in the format, embeddings, head and norms in half precision."""
    return ceil((spec.linear_params * LINEAR_BYTES[weight_format] + spec.other_params * OTHER_BYTES) / tp)


def workspace_bytes(spec: ModelSpec, max_rows: int, max_step_tokens: int) -> int:
    """Upper estimate of what a step needs beside weights and KV: activations, logits and the sampler's tables."""
    activations = max_step_tokens * spec.hidden_size * 2 * BLOCK_WIDTHS
    logits = max_rows * spec.vocab_size * 4 * 4
    counts = max_rows * spec.vocab_size * 3
    return activations + logits + counts + _image_work(spec)


def _image_work(spec: ModelSpec) -> int:
    """What encoding takes at most: a batch of tiles, or one whole picture where it cannot be cut."""
    if spec.vision is None:
        return 0
    tiles = max(IMAGE_BATCH, spec.vision.most_tiles if spec.vision.grids else 0)
    return tiles * spec.vision.tile_work * 2


def image_cache_bytes(spec: ModelSpec) -> int:
    """Vectors of images, as many as a GPU keeps by default."""
    if spec.vision is None:
        return 0
    tiles = max(IMAGE_TILES["cuda"], spec.vision.most_tiles)
    return tiles * spec.vision.tile_tokens * spec.hidden_size * 2


def kv_tokens(free_bytes: int, frac: float, token_bytes: int) -> int:
    """Tokens of KV that a share of the free memory holds."""
    return max(0, int(free_bytes * frac) // token_bytes)


def require_tokens(tokens: int, needed: int, token_bytes: int, free_bytes: int, frac: float) -> None:
    """Raises CapacityError where the cache cannot hold one sequence of `needed` tokens; names the flag that fits."""
    if tokens >= needed:
        return
    least = _least_frac(needed * token_bytes, free_bytes)
    shorter = max(0, kv_tokens(free_bytes, MOST_FRAC, token_bytes))
    fix = (
        f"use --cache-max-entry-count {least:.2f}" if least is not None
        else f"use --session-len {shorter} or a smaller --quant-policy kind"
    )
    raise CapacityError(
        f"the KV cache holds {tokens} tokens ({_gib(int(free_bytes * frac))} of {_gib(free_bytes)} free, "
        f"{token_bytes} bytes a token) but one sequence may have {needed}: {fix}"
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """A weight format and a KV kind: bytes of all weights, and of one token's K and V in one layer."""

    weights: str
    weight_bytes: int
    kv: str
    layer_token_bytes: int


def _row(pair: _Pair, spec: ModelSpec, work: int, request: PlanRequest) -> PlanRow:
    token_bytes = pair.layer_token_bytes * spec.num_layers
    free = request.memory_bytes - DEVICE_BASE_BYTES - pair.weight_bytes - work
    tokens = kv_tokens(free, request.memory_frac, token_bytes)
    verdicts = tuple(_verdict(request, context, token_bytes, free) for context in request.contexts)
    return PlanRow(
        pair.weights, pair.kv, pair.weight_bytes, token_bytes, tokens, min(tokens, spec.max_model_tokens),
        {c: tokens // c for c in request.contexts}, verdicts,
    )


def _verdict(request: PlanRequest, context: int, token_bytes: int, free: int) -> Verdict:
    needed = request.batch * context * token_bytes
    most = max(0, int(free * MOST_FRAC)) // (context * token_bytes)
    return Verdict(context, needed, _least_frac(needed, free), most)


def _least_frac(needed_bytes: int, free_bytes: int) -> float | None:
    """The least share (in hundredths) of free memory that holds `needed_bytes`; None: none below MOST_FRAC does."""
    if free_bytes <= 0:
        return None
    share = ceil(needed_bytes / free_bytes * 100) / 100
    return share if share <= MOST_FRAC else None


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


LEGEND = (
    "fits: at the share above. 0.87: with --cache-max-entry-count 0.87. no, 4 fit: at most --max-batch-size 4. "
    "no: not one such sequence."
)


def format_plan(plan: MemoryPlan) -> str:
    """The plan as a table in plain text."""
    request = plan.request
    contexts = [_short(c) for c in request.contexts]
    lines = [
        f"memory {_gib(request.memory_bytes)}, workspace {_gib(plan.workspace_bytes)}, "
        f"{request.memory_frac:.0%} of the rest for the KV cache, batch {request.batch}",
        _line("weights", "KV", "weights", "B/token", "tokens", "context", *contexts,
              *(f"{request.batch} x {context}" for context in contexts)),
    ]
    for row in plan.rows:
        lines.append(_line(
            row.weights, row.kv, _gib(row.weight_bytes), str(row.token_bytes), str(row.tokens), str(row.max_context),
            *(str(n) for n in row.sequences.values()), *(_shown(v, request.memory_frac) for v in row.verdicts),
        ))
    fp32 = f"A CPU computes in fp32: plain weights take {_gib(plan.fp32_weight_bytes)} there, KV auto twice the bytes."
    return "\n".join([*lines, LEGEND, fp32])


def _shown(verdict: Verdict, share: float) -> str:
    size = _gib(verdict.kv_bytes)
    if verdict.fits and verdict.frac is not None:
        return f"{size} {'fits' if verdict.frac <= share else f'{verdict.frac:.2f}'}"
    return f"{size} no, {verdict.batch} fit" if verdict.batch else f"{size} no"


def _short(context: int) -> str:
    return f"{context // 1024}k" if context % 1024 == 0 else str(context)


def _line(*cells: str) -> str:
    count = (len(cells) - 6) // 2
    widths = (8, 11, 11, 8, 8, 8, *([5] * count), *([21] * count))
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
