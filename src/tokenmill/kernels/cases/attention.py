"""Cases of attention: every KV kind, row mixture and head layout, against torch's attention row by row in fp64.

The truth attends over what the kind reads back, so that an attention kernel is judged apart from the rounding of its
cache. Places behind a row's end hold large numbers or NaN (in values or scales), blocks lie in no order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.kernels.case import ROUNDING, Call, Case, draw, dtype_name
from tokenmill.kernels.meta import ChunkRow, RowMeta
from tokenmill.kernels.ops import AttentionFacts
from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import kind_names, load_kind

Rows = tuple[tuple[int, int], ...]  # (context, tokens of it in this step), one-token rows first

VARIANTS = ("window", "softcap", "alibi", "sinks")
# Tokens of a chunk see to the end of the run of so many that they lie in.
RUN = 5
MIXTURES: dict[str, Rows] = {
    "one": ((70, 1),),
    "singles": ((1, 1), (17, 1), (64, 1), (200, 1), (16, 1)),
    "prompt": ((50, 50),),
    "chunk": ((90, 7),),
    "mixed": ((33, 1), (5, 1), (40, 40), (100, 9)),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """H query heads, G kv heads of K channels; blocks of S tokens. `loud`: scores so large that one place takes all.

    `host`: the chunks are known on the host, else rows are padded. `spare_rows`: empty rows behind, as in a bucket.
    `variant`: a name of VARIANTS. `stale`: what lies where nobody wrote. `ahead`: chunks' tokens see ahead, in runs.
    """

    rows: Rows
    H: int = 4
    G: int = 2
    K: int = 64
    S: int = 16
    kv: str = "auto"
    dtype: torch.dtype = torch.float32
    host: bool = True
    loud: float = 1.0
    spare_rows: int = 0
    variant: str = ""
    stale: float = 50.0
    ahead: bool = False

    def facts(self, device: torch.device) -> AttentionFacts:
        heads_H = torch.arange(1, self.H + 1, device=device)
        slopes, sinks = 2.0 ** (-8.0 * heads_H / self.H), heads_H / self.H - 0.5
        varied: dict[str, dict[str, Any]] = {
            "": {}, "window": {"window_tokens": 24}, "softcap": {"softcap": 0.5}, "alibi": {"alibi_slopes_H": slopes},
            "sinks": {"sinks_H": sinks},
        }  # fmt: skip
        return AttentionFacts(self.K**-0.5, **varied[self.variant])


def row_meta(setup: Setup, table_RB: Tensor, device: torch.device) -> RowMeta:
    counts = [tokens for _, tokens in setup.rows] + [0] * setup.spare_rows
    totals = [context for context, _ in setup.rows] + [0] * setup.spare_rows
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    positions = [place for context, tokens in setup.rows for place in range(context - tokens, context)]
    # A bucket's unused rows have a token of their own, which writes nowhere and is never read.
    rows = [i for i, tokens in enumerate(counts) for _ in range(tokens or 1)]
    positions += [0] * setup.spare_rows
    ints = partial(torch.tensor, dtype=torch.int32, device=device)
    single = max(counts) == 1
    chunks = tuple(ChunkRow(i, starts[i], n, totals[i]) for i, n in enumerate(counts) if n > 1)
    ends = [place for context, tokens in setup.rows for place in run_ends(context, tokens)] + [0] * setup.spare_rows
    return RowMeta(
        starts_R1=ints(starts), totals_R=ints(totals), slots_R=ints(range(len(counts))), rows_T=ints(rows),
        positions_T=ints(positions), tables=(table_RB.to(device),), writes_T=(), num_single=ints([counts.count(1)]),
        cos_TK=torch.empty(0), sin_TK=torch.empty(0), logn_T=None, max_row_tokens=max(counts),
        max_context=max(totals), all_single=single, chunks=chunks if setup.host and not single else None,
        ends_T=ints(ends) if setup.ahead else None,
    )


def run_ends(context: int, tokens: int) -> list[int]:
    """The last place that each of a row's last tokens sees where tokens of a chunk see ahead."""
    own = range(context - tokens, context)
    return [min(place // RUN * RUN + RUN, context) - 1 if tokens > 1 else place for place in own]


def make(setup: Setup, device: torch.device) -> Call:
    longest = max(context for context, _ in setup.rows)
    num_rows = len(setup.rows) + setup.spare_rows
    per_row = -(-longest // setup.S)
    order = torch.randperm(num_rows * per_row, generator=torch.Generator().manual_seed(9))
    table_RB = order.view(num_rows, per_row).int()
    pages = load_kind(setup.kv).alloc(len(order), KVShape(setup.G, setup.K, setup.S), setup.dtype, device)
    for plane in pages.planes.values():
        if plane.is_floating_point():
            plane.fill_(setup.stale)
    contexts = [_fill(setup, pages, table_RB[i], context, i) for i, (context, _) in enumerate(setup.rows)]
    num_tokens = sum(tokens for _, tokens in setup.rows)
    q_THK = draw(num_tokens + setup.spare_rows, setup.H, setup.K, seed=10, dtype=setup.dtype) * setup.loud
    truth = _truth(setup, q_THK.double(), contexts)
    arguments = (q_THK.to(device), pages, row_meta(setup, table_RB, device), 0, setup.facts(device))
    # Half types round probabilities, values and the result: each against what the sum is made of, not what is left of
    # it. fp32 sums of values below 4 in size on top.
    terms = _truth(setup, q_THK.double(), [(k, v.abs()) for k, v in contexts])
    unit = ROUNDING[setup.dtype] * terms + 2.0**-21
    return Call(arguments, truth, unit, lambda out: out[:num_tokens])


def _fill(setup: Setup, pages: KVPages, table_B: Tensor, context: int, seed: int) -> tuple[Tensor, Tensor]:
    """Writes a row's context; K and V as the kind reads them back, fp64 [L, G, K]."""
    device = next(iter(pages.planes.values())).device
    places_L = torch.arange(context)
    index_L = (table_B[places_L // setup.S].long() * setup.S + places_L % setup.S).to(device)
    k, v = (draw(context, setup.G, setup.K, seed=20 + 2 * seed + i, dtype=setup.dtype).to(device) for i in (0, 1))
    pages.kind.write(pages, k, v, index_L)
    k, v = pages.kind.gather(pages, index_L[None])
    return k[0].double().cpu(), v[0].double().cpu()


def _truth(setup: Setup, q_THK: Tensor, contexts: list[tuple[Tensor, Tensor]]) -> Tensor:
    facts, outs, start = setup.facts(torch.device("cpu")), [], 0
    for (context, tokens), (k_LGK, v_LGK) in zip(setup.rows, contexts, strict=True):
        seen = torch.ones(context, context, dtype=torch.bool).tril()[-tokens:]
        if setup.ahead:
            seen = torch.arange(context) <= torch.tensor(run_ends(context, tokens))[:, None]
        k_LHK, v_LHK = (x.repeat_interleave(setup.H // setup.G, 1) for x in (k_LGK, v_LGK))
        q, k, v = (x.transpose(0, 1) for x in (q_THK[start : start + tokens], k_LHK, v_LHK))
        if setup.variant:
            out = _varied_truth(q, k, v, facts, seen)
        else:
            out = functional.scaled_dot_product_attention(q, k, v, seen, scale=facts.scale)
        outs.append(out.transpose(0, 1))
        start += tokens
    return torch.cat(outs)


def _varied_truth(q_HTK: Tensor, k_HLK: Tensor, v_HLK: Tensor, facts: AttentionFacts, seen_TL: Tensor) -> Tensor:
    """The formulas as papers write them: exp of every visible score over the sum of them (and of the sink)."""
    T, L = q_HTK.shape[1], k_HLK.shape[1]
    behind_TL = torch.arange(L - T, L)[:, None] - torch.arange(L)
    scores = q_HTK @ k_HLK.mT * facts.scale
    if facts.softcap is not None:
        scores = facts.softcap * torch.tanh(scores / facts.softcap)
    if facts.alibi_slopes_H is not None:
        scores = scores - facts.alibi_slopes_H.double()[:, None, None] * behind_TL
    seen_TL = seen_TL & (behind_TL < (facts.window_tokens or L))
    mass = torch.where(seen_TL, scores.exp(), 0.0)
    total = mass.sum(-1, keepdim=True)
    if facts.sinks_H is not None:
        total = total + facts.sinks_H.double().exp()[:, None, None]
    return mass / total @ v_HLK


def case(name: str, setup: Setup) -> Case:
    pairs = sum(tokens * context for context, tokens in setup.rows)
    cache = sum(context for context, _ in setup.rows)
    token = load_kind(setup.kv).bytes_per_token(setup.G, setup.K, setup.dtype.itemsize)
    queries = 2 * sum(tokens for _, tokens in setup.rows) * setup.H * setup.K * setup.dtype.itemsize
    # Loud scores are near 200, of which fp32 keeps 2^-17; probabilities inherit it.
    tolerance = 64 if setup.loud > 1 else 4
    name = f"{name}-{setup.kv}-H{setup.H}G{setup.G}K{setup.K}-{dtype_name(setup.dtype)}"
    return Case(name, partial(make, setup), tolerance, cache * token + queries, 4 * pairs * setup.H * setup.K)


# Steps whose tokens see ahead: whole prompts, chunks behind a context, beside single rows, padded, with a window.
AHEAD = {
    "prompt": Setup(MIXTURES["prompt"]), "mixed": Setup(MIXTURES["mixed"]),
    "padded": Setup(MIXTURES["mixed"], host=False),
    "window": Setup(MIXTURES["mixed"], variant="window"), "half": Setup(MIXTURES["mixed"], dtype=torch.float16),
}  # fmt: skip


def _cases() -> tuple[Case, ...]:
    plain = [case(name, Setup(rows)) for name, rows in MIXTURES.items()]
    kinds = [
        case(name, Setup(MIXTURES[name], kv=kv)) for kv in kind_names() if kv != "auto" for name in ("singles", "mixed")
    ]
    mixed, singles = Setup(MIXTURES["mixed"]), Setup(MIXTURES["singles"])
    spoilt = [case("beside NaN", replace(mixed, kv=kv, stale=torch.nan)) for kv in kind_names()]
    return (
        *plain,
        *kinds,
        *spoilt,
        case("singles beside NaN", replace(singles, stale=torch.nan)),
        *(case("mixed", replace(mixed, dtype=dtype)) for dtype in (torch.float16, torch.bfloat16)),
        *(case("singles", replace(singles, dtype=dtype)) for dtype in (torch.float16, torch.bfloat16)),
        *(case("mixed", replace(mixed, H=H, G=G, K=K)) for H, G, K in ((8, 1, 64), (4, 4, 32), (6, 2, 128))),
        *(case("singles", replace(singles, H=H, G=G, K=K)) for H, G, K in ((8, 1, 64), (4, 4, 32), (6, 2, 128))),
        case("blocks of 64", replace(mixed, S=64)),
        case("padded", replace(mixed, host=False)),
        case("loud", replace(mixed, loud=30.0)),
        case("bucket", replace(singles, spare_rows=3)),
        *(case(f"ahead {name}", replace(setup, ahead=True, stale=torch.nan)) for name, setup in AHEAD.items()),
        *(case(f"{variant} {name}", replace(setup, variant=variant, stale=torch.nan))
          for variant in VARIANTS for name, setup in (("mixed", mixed), ("singles", singles))),
    )


CASES = _cases()
