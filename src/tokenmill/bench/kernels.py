"""Kernels at the sizes of a 7B model (grouped-query, 4096 wide), each against its floor and against torch's own.

A `Timing` is one line: what ran, its shape, microseconds, the floor it could not go under, the error against fp32
(largest difference over the largest number), and a peer's time where torch has the same thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.bench.ceilings import Call, Ceilings, copies, graph_us
from tokenmill.distributed.group import NullGroup
from tokenmill.kernels.bind import BindFacts, bind
from tokenmill.kernels.meta import ChunkRow, RowMeta, Stream
from tokenmill.kernels.ops import AttentionFacts, AttentionParts, Heads, MlpParts, Norm, Ops
from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import bytes_per_block, load_kind
from tokenmill.weights.classes import Dense, Fp8Channel, Int8Channel, IntGroup
from tokenmill.weights.contract import Weight

D, F, HEADS = 4096, 14336, Heads(32, 8, 128)
SHAPES = {"qkv": (6144, D), "o": (D, D), "gate_up": (2 * F, D), "down": (D, F)}
BLOCK_TOKENS = 64
HALF = torch.float16
DEVICE = torch.device("cuda")


@dataclass(slots=True)
class Timing:
    what: str
    shape: str
    us: float
    floor_us: float
    error: float = 0.0
    peer_us: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.floor_us / self.us

    def cells(self) -> tuple[str, ...]:
        peer = "-" if self.peer_us is None else f"{self.peer_us:.1f}"
        notes = " ".join(f"{key}={value}" for key, value in self.notes.items())
        return (self.what, self.shape, f"{self.us:.1f}", f"{self.floor_us:.1f}", f"{100 * self.share:.0f}%", peer,
                f"{self.error:.1e}", notes)  # fmt: skip

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


HEADERS = ("op", "shape", "us", "floor", "share", "torch", "error", "notes")


def random_weight(kind: str, n: int, m: int) -> Weight:
    """Random codes, so scaled that results are of the size of inputs."""
    spread = m**-0.5
    if kind == "w4":
        codes = torch.randint(-(2**31), 2**31, (n, m // 8), dtype=torch.int64, device=DEVICE).to(torch.int32)
        scales = (torch.rand(n, m // 128, device=DEVICE) + 0.5) * spread / 4
        zeros = torch.randint(4, 12, (n, m // 128), dtype=torch.int16, device=DEVICE)
        return IntGroup(codes, scales.half(), zeros, 4, 128, m)
    if kind == "int8":
        codes8 = torch.randint(-127, 128, (n, m), dtype=torch.int8, device=DEVICE)
        return Int8Channel(codes8, torch.full((n, 1), spread / 64, device=DEVICE))
    if kind == "fp8":
        numbers = torch.randn(n, m, device=DEVICE).to(torch.float8_e4m3fn)
        return Fp8Channel(numbers, torch.full((n, 1), spread, device=DEVICE))
    return Dense(torch.randn(n, m, device=DEVICE).to(HALF) * spread)


# ---------------------------------------------------------------- products


def product_timing(kind: str, name: str, tokens: int, ceilings: Ceilings) -> Timing:
    """A linear as it is bound, beside torch's fp16 product of the same shape."""
    n, m = SHAPES[name]
    weight = random_weight(kind, n, m)
    sets = copies(weight.nbytes)
    ops = bind(DEVICE, BindFacts(HALF), ("triton",)).primitives
    held = [ops.prepare_linear(weight, None, HALF) for _ in range(sets)]
    x_TM = torch.randn(tokens, m, device=DEVICE, dtype=HALF)
    matrix_NM = weight.dequantize(torch.float32)
    error = difference(held[0](x_TM), x_TM.float() @ matrix_NM.T)
    us = graph_us([partial(linear, x_TM) for linear in held])
    plain = [matrix_NM.to(HALF) for _ in range(copies(2 * n * m))]
    peer_us = graph_us([partial(functional.linear, x_TM, matrix) for matrix in plain])
    floor = ceilings.floor_us(weight.nbytes + 2 * tokens * (n + m), 2 * tokens * n * m)
    return Timing(f"linear {kind}", f"{name} T{tokens}", us, floor, error, peer_us)


def tilings(tokens: int) -> Iterator[Any]:
    """Cuts worth trying for a number of tokens."""
    from tokenmill.kernels.triton._held import Tiling

    block_t = min(128, max(8, 1 << (tokens - 1).bit_length()))
    for block_n, warps in ((16, 1), (32, 2), (64, 4), (128, 4)) if tokens <= 32 else ((64, 4), (128, 4), (128, 8)):
        for splits in (1, 2, 4, 8) if tokens <= 64 else (1, 2):
            yield Tiling(block_n, block_t, splits, warps, stages=5 if tokens <= 32 else 3)
    if tokens > 32:
        yield Tiling(128, block_t, 1, 8, stages=3, fold=True)
        yield Tiling(64, min(block_t, 64), 1, 4, stages=4, fold=True)


def tuned(kind: str, name: str, tokens: int, ceilings: Ceilings) -> list[Timing]:
    """Every cut of a product, the fastest first; a cut that does not run says why."""
    from tokenmill.kernels.triton._held import Held, hold
    from tokenmill.kernels.triton._launch import linear, product

    n, m = SHAPES[name]
    weight = random_weight(kind, n, m)
    first = hold(weight, None, HALF)
    assert isinstance(first, Held), first
    held = [replace(first, w=first.w.clone()) for _ in range(copies(weight.nbytes))]
    x_TM = torch.randn(tokens, m, device=DEVICE, dtype=HALF)
    truth = x_TM.float() @ weight.dequantize(torch.float32).T
    floor = ceilings.floor_us(weight.nbytes + 2 * tokens * (n + m), 2 * tokens * n * m)
    found = []
    for cut in tilings(tokens):
        notes = {"n": cut.block_n, "t": cut.block_t, "z": cut.splits, "w": cut.warps, "s": cut.stages, "f": cut.fold}
        try:
            error = difference(linear(product(first, x_TM, cut=cut))[0], truth)
            us = graph_us([partial(_cut_product, each, x_TM, cut) for each in held], replays=3)
            found.append(Timing(f"tile {kind}", f"{name} T{tokens}", us, floor, error, None, notes))
        except Exception as failure:  # noqa: BLE001 -- one cut that does not fit must not end the search
            found.append(Timing(f"tile {kind}", f"{name} T{tokens}", float("inf"), floor, 0.0, None,
                                {**notes, "failed": f"{type(failure).__name__} {failure}"[:80]}))
    return sorted(found, key=lambda timing: timing.us)


def _cut_product(held: Any, x_TM: Tensor, cut: Any) -> object:
    from tokenmill.kernels.triton._launch import linear, product

    return linear(product(held, x_TM, cut=cut))


def difference(got: Tensor, truth: Tensor) -> float:
    """The largest difference over the largest number; infinite where anything is not finite."""
    error = float((got.float() - truth.float()).abs().max() / truth.float().abs().max())
    return error if bool(got.isfinite().all()) else float("inf")


VOCAB = 92544


def cutoffs_timing(rows: int, ceilings: Ceilings) -> Timing:
    """Thresholds of top-k 40 and top-p 0.8; the peer is the reference's sort. The floor is one reading."""
    facts = BindFacts(HALF)
    ours, sort = (bind(DEVICE, facts, backends).primitives.cutoffs for backends in (("triton",), ()))
    x_RV = torch.randn(rows, VOCAB, device=DEVICE) * 3
    top_k_R = torch.full((rows,), 40, dtype=torch.int32, device=DEVICE)
    top_p_R, min_p_R = torch.full((rows,), 0.8, device=DEVICE), torch.zeros(rows, device=DEVICE)
    arguments = x_RV, top_k_R, top_p_R, min_p_R
    error = difference(ours(*arguments), sort(*arguments))
    us, peer_us = graph_us([partial(ours, *arguments)]), graph_us([partial(sort, *arguments)], replays=2)
    return Timing("cutoffs", f"{rows} x {VOCAB}", us, ceilings.floor_us(x_RV.nbytes, 0), error, peer_us)


# ---------------------------------------------------------------- attention and layers


def rows_of(contexts: list[int], counts: list[int]) -> RowMeta:
    """Rows of these contexts, of which the last `counts` tokens are in the step; blocks in random order."""
    R, ints = len(contexts), partial(torch.tensor, dtype=torch.int32, device=DEVICE)
    per_row = -(-max(contexts) // BLOCK_TOKENS)
    table_RB = torch.randperm(R * per_row, device=DEVICE).view(R, per_row).int()
    starts = [sum(counts[:i]) for i in range(R + 1)]
    rows = [r for r, count in enumerate(counts) for _ in range(count)]
    spans = [range(context - count, context) for context, count in zip(contexts, counts, strict=True)]
    positions = [place for span in spans for place in span]
    rows_T, positions_T = ints(rows), ints(positions)
    blocks_T = table_RB[rows_T.long(), positions_T.long() // BLOCK_TOKENS].long()
    writes_T = blocks_T * BLOCK_TOKENS + positions_T.long() % BLOCK_TOKENS
    angle_TK = positions_T[:, None] * 1e6 ** (-torch.arange(64, device=DEVICE) / 64.0)
    single = max(counts) == 1
    chunks = None if single else tuple(ChunkRow(r, starts[r], n, contexts[r]) for r, n in enumerate(counts))
    return RowMeta(
        ints(starts), ints(contexts), ints(range(R)), rows_T, positions_T, (table_RB,), (writes_T,),
        ints([counts.count(1)]), angle_TK.cos(), angle_TK.sin(), None, max(counts), max(contexts), single, chunks,
    )  # fmt: skip


def filled(kv: str, num_blocks: int) -> KVPages:
    """A cache written over with random numbers, a slice at a time."""
    shape = KVShape(HEADS.num_kv_heads, HEADS.head_dim, BLOCK_TOKENS)
    pages = load_kind(kv).alloc(num_blocks, shape, HALF, DEVICE)
    for start in range(0, num_blocks * BLOCK_TOKENS, 1 << 16):
        places_T = torch.arange(start, min(start + (1 << 16), num_blocks * BLOCK_TOKENS), device=DEVICE)
        size = (2, len(places_T), shape.num_heads, shape.head_dim)
        k_TGK, v_TGK = torch.randn(size, device=DEVICE, dtype=HALF)
        pages.kind.write(pages, k_TGK, v_TGK, places_T)
    return pages


def attention_timing(kv: str, contexts: list[int], counts: list[int], ceilings: Ceilings) -> Timing:
    """Attention as it is bound. The error is that of the first rows, against the reference."""
    rows = rows_of(contexts, counts)
    pages = filled(kv, rows.tables[0].numel())
    ops = bind(DEVICE, BindFacts(HALF, kv), ("triton",)).primitives
    q_THK = torch.randn(sum(counts), HEADS.num_heads, HEADS.head_dim, device=DEVICE, dtype=HALF)
    facts = AttentionFacts(HEADS.head_dim**-0.5)
    run: Call = lambda: ops.attention(q_THK, pages, rows, 0, facts)
    error = _attention_error(ops.attention(q_THK, pages, rows, 0, facts), q_THK, pages, rows, facts)
    cache = sum(contexts) * bytes_per_block(kv, HEADS.num_kv_heads, HEADS.head_dim, 1, 2)
    pairs = sum(n * context - n * (n - 1) // 2 for context, n in zip(contexts, counts, strict=True))
    flops = 4 * pairs * HEADS.num_heads * HEADS.head_dim
    floor = ceilings.floor_us(cache + 4 * q_THK.numel(), flops)
    name = f"{len(contexts)} x {contexts[0]}" + ("" if max(counts) == 1 else f" T{counts[0]}")
    return Timing(f"attention {kv}", name, graph_us([run]), floor, error, _sdpa_us(contexts, counts))


def _attention_error(out_THK: Tensor, q_THK: Tensor, pages: KVPages, rows: RowMeta, facts: AttentionFacts) -> float:
    """Of the last tokens of the first row, by torch's fp32 over what the cache reads back."""
    first, last = int(rows.starts_R1[0]), int(rows.starts_R1[1])
    some = slice(max(first, last - 16), last)
    context, S = int(rows.totals_R[0]), BLOCK_TOKENS
    places_L = torch.arange(context, device=DEVICE)
    index_1L = (rows.tables[0][0, places_L // S].long() * S + places_L % S)[None]
    k_LGK, v_LGK = (x[0] for x in pages.kind.gather(pages, index_1L))
    q, k, v = (x.float().transpose(0, 1) for x in (q_THK[some], k_LGK, v_LGK))
    seen = places_L[None, :] <= rows.positions_T[some][:, None]
    k, v = (x.repeat_interleave(HEADS.num_heads // HEADS.num_kv_heads, 0) for x in (k, v))
    truth = ((q @ k.mT * facts.scale).masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1)
    return difference(out_THK[some], truth)


def _sdpa_us(contexts: list[int], counts: list[int]) -> float | None:
    """torch's attention over plain, contiguous fp16 of the same sizes, where all rows are alike and it fits."""
    B, context, tokens = len(contexts), contexts[0], counts[0]
    if len(set(contexts)) > 1 or B * context > 1 << 20 or tokens not in (1, context):
        return None
    q = torch.randn(B, HEADS.num_heads, tokens, HEADS.head_dim, device=DEVICE, dtype=HALF)
    k, v = (torch.randn(B, HEADS.num_kv_heads, context, HEADS.head_dim, device=DEVICE, dtype=HALF) for _ in range(2))
    return graph_us([lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=tokens > 1, enable_gqa=True)])


LAYERS = 4


@dataclass(frozen=True, slots=True)
class Step:
    """A decode step's layer: weights, cache, `batch` rows of `context` tokens, and who serves it."""

    kind: str
    kv: str
    batch: int
    context: int
    backends: tuple[str, ...] = ("triton",)
    early: bool = False


def layer_timing(step: Step, ceilings: Ceilings) -> Timing:
    """Microseconds of a whole layer: LAYERS of them in a graph, each with weights of its own."""
    from tokenmill.kernels.triton import _held

    if step.backends:
        _held.asked_early = step.early
    facts = BindFacts(HALF, step.kv)
    ops, reference = bind(DEVICE, facts, step.backends), bind(DEVICE, facts, ())
    weights = [{name: random_weight(step.kind, *shape) for name, shape in SHAPES.items()} for _ in range(LAYERS)]
    parts = [layer_parts(ops, weight) for weight in weights]
    rows = rows_of([step.context] * step.batch, [1] * step.batch)
    pages = filled(step.kv, rows.tables[0].numel())
    residual_TD = torch.randn(step.batch, D, device=DEVICE, dtype=HALF)
    expected = run_layers(reference, [layer_parts(reference, weights[0])], residual_TD, rows, pages)
    error = difference(run_layers(ops, parts[:1], residual_TD, rows, pages), expected)
    us = graph_us([lambda: run_layers(ops, parts, residual_TD, rows, pages)]) / LAYERS
    flops = 2 * step.batch * sum(n * m for n, m in SHAPES.values())
    cache = step.batch * step.context * bytes_per_block(step.kv, HEADS.num_kv_heads, HEADS.head_dim, 1, 2)
    floor = ceilings.floor_us(sum(w.nbytes for w in weights[0].values()), flops) + ceilings.floor_us(cache, 0)
    name = f"B{step.batch} x {step.context} {'+'.join(step.backends) or 'reference'}"
    return Timing(f"layer {step.kind} {step.kv}", name + " early" * step.early, us, floor, error)


def layer_parts(ops: Ops, weights: dict[str, Weight]) -> tuple[AttentionParts, MlpParts]:
    made = {name: ops.primitives.prepare_linear(weight, None, HALF) for name, weight in weights.items()}
    norm, reduce = Norm(torch.ones(D, device=DEVICE, dtype=HALF), 1e-5), NullGroup().all_reduce
    attention = AttentionParts(norm, made["qkv"], made["o"], HEADS, AttentionFacts(HEADS.head_dim**-0.5), reduce)
    return attention, MlpParts(norm, made["gate_up"], made["down"], reduce)


def run_layers(
    ops: Ops, parts: list[tuple[AttentionParts, MlpParts]], residual_TD: Tensor, rows: RowMeta, pages: KVPages
) -> Tensor:
    stream = Stream(residual_TD)
    for attention, mlp in parts:
        q_THK = ops.attn_in(stream, attention, rows, pages)
        stream = ops.attn_out(stream, ops.attend(q_THK, attention, rows, pages), attention, mlp.norm)
        stream = ops.mlp_out(stream, ops.mlp_in(stream, mlp), mlp, attention.norm)
    return stream.residual_TD
