"""One token per row from its logits. Rows differ in every parameter; nothing loops over rows.

Order: grammar mask, bias and bad words, stops before their time, penalties, temperature, top-k, top-p, min-p, draw. The
draw is an exponential race (the Gumbel-max trick): the token with the largest `x - log E` wins, E from `noise.py`, so a
row draws the same alone, in a batch and in any slot. Greedy is an exact argmax; the lowest id wins a tie.

Filters are thresholds on values: top-k keeps what is not below the k-th value (ties at it survive), top-p what is not
below the last value of the smallest prefix that holds its mass, min-p what has at least its share of the best one's
probability. A threshold does not depend on how a sort orders ties.

Shapes: R rows, V vocab, W entries of a per-row list, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.kernels.reference.mask_rows import mask_rows as reference_mask_rows
from tokenmill.kernels.reference.penalise import penalise as reference_penalise
from tokenmill.runner import noise, slots
from tokenmill.runner.slots import SlotTables, Stage

# On CPU, top-p without top-k looks at this many best tokens before it sorts the vocabulary.
CPU_CANDIDATES = 512


@dataclass(slots=True)
class RowSampling:
    """Parameters of R rows.

    params_f fp32 [R, NUM_F] and params_i int32 [R, NUM_I]: columns of `slots.py`. positions int [R]: of the token to
    draw. bias_*, stop_*: lists [R, W], value 0 is padding. history: places int64 [R] in the tables prompt_seen bool
    [S, V] and output_counts int16 [S, V]. Lists and history are None where no row has them.
    """

    params_f: Tensor
    params_i: Tensor
    positions: Tensor
    bias: tuple[Tensor, Tensor] | None = None
    stops: tuple[Tensor, Tensor] | None = None
    history: tuple[Tensor, Tensor, Tensor] | None = None

    @staticmethod
    def of(tables: SlotTables, slots_R: Tensor, positions_R: Tensor, stages: Stage) -> RowSampling:
        """The rows of a step, from the device tables."""
        rows = RowSampling(tables.params_f[slots_R], tables.params_i[slots_R], positions_R)
        if stages & Stage.BIAS:
            rows.bias = tables.bias_ids[slots_R], tables.bias_values[slots_R]
        if stages & Stage.STOPS:
            rows.stops = tables.stop_ids[slots_R], tables.stop_values[slots_R]
        if stages & Stage.PENALTY:
            rows.history = slots_R, tables.prompt_seen, tables.output_counts
        return rows


@dataclass(frozen=True, slots=True)
class SampleOps:
    """Ops of `kernels/ops.py` that a backend may do its own way. cutoffs None: torch's, here, which use what the host
    knows of the rows.
    """

    penalise: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] = reference_penalise
    mask_rows: Callable[[Tensor, Tensor, Tensor], None] = reference_mask_rows
    cutoffs: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None


PLAIN = SampleOps()


def sample(
    logits_RV: Tensor, rows: RowSampling, stages: Stage, num_candidates: int = 0, ops: SampleOps = PLAIN
) -> Tensor:
    """Tokens int64 [R]. logits fp32, overwritten. `num_candidates`: no row's top-k is larger (0: some row has none)."""
    x = adjust(logits_RV, rows, stages, ops)
    if not stages & Stage.DRAW:
        return x.argmax(-1)
    x /= rows.params_f[:, slots.F_TEMPERATURE, None]
    if ops.cutoffs is not None and stages & (Stage.TOP_K | Stage.TOP_P | Stage.MIN_P):
        top_p_R, min_p_R = rows.params_f[:, slots.F_TOP_P], rows.params_f[:, slots.F_MIN_P]
        cut_R: Tensor | None = ops.cutoffs(x, rows.params_i[:, slots.I_TOP_K], top_p_R, min_p_R)
    else:
        cut_R = _cutoffs(x, rows, stages, num_candidates)
    if cut_R is not None:
        x.masked_fill_(x < cut_R[:, None], -math.inf)
    draws = (rows.params_i[:, slots.I_TOP_K] != 1).float()
    race = noise.exponential(noise.row_keys(_seeds(rows.params_i), rows.positions), x.shape[1])
    return x.sub_(race.log_().mul_(draws[:, None])).argmax(-1)


def adjust(x: Tensor, rows: RowSampling, stages: Stage, ops: SampleOps) -> Tensor:
    """Bias, bad words, stops before their time and penalties, in place."""
    if stages & Stage.BIAS and rows.bias is not None:
        x.scatter_add_(1, *rows.bias)
    if stages & Stage.STOPS and rows.stops is not None:
        early = rows.positions < rows.params_i[:, slots.I_MIN_TOKENS]
        x.scatter_add_(1, rows.stops[0], rows.stops[1].masked_fill(~early[:, None], 0.0))
    if stages & Stage.PENALTY:
        if rows.history is None:
            raise ValueError("penalties are wanted but the step brought no counts")
        ops.penalise(x, *rows.history, rows.params_f[:, slots.F_REPETITION : slots.F_FREQUENCY + 1])
    return x


def finite_rows(logits_RV: Tensor) -> Tensor:
    """int32 [R]: 1 where every logit is a number. A sum of finite fp32 logits cannot overflow below 3e33 each."""
    sums_R = logits_RV.sum(-1)
    # x - x is 0 for every finite x: two operators, where isfinite is four.
    return (sums_R - sums_R == 0).to(torch.int32)


def raw_logprobs(logits_RV: Tensor, tokens_R: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the raw distribution: logprob of each token [R], ids int32 and logprobs of the best [R, num_top]."""
    norm_R1 = logits_RV.logsumexp(-1, keepdim=True)
    values, ids = logits_RV.topk(num_top, -1) if num_top else (logits_RV[:, :0], tokens_R[:, None][:, :0])
    mine_R1 = logits_RV.gather(1, tokens_R[:, None])
    return (mine_R1 - norm_R1)[:, 0], ids.to(torch.int32), values - norm_R1


def _cutoffs(x: Tensor, rows: RowSampling, stages: Stage, num_candidates: int) -> Tensor | None:
    """The least value that survives top-k, top-p and min-p in each row; None: nothing is filtered."""
    cut = None
    if stages & (Stage.TOP_K | Stage.TOP_P):
        cut = _ranked_cutoffs(x, rows, stages, num_candidates)
    if stages & Stage.MIN_P:
        best = x.amax(-1)
        least = best + rows.params_f[:, slots.F_MIN_P].log()
        cut = least if cut is None else torch.maximum(cut, least)
    return cut


def _ranked_cutoffs(x: Tensor, rows: RowSampling, stages: Stage, num_candidates: int) -> Tensor:
    vocab = x.shape[1]
    if num_candidates:
        return _cut_among(_best(x, num_candidates), None, rows, stages)[0]
    norm_R1 = x.logsumexp(-1, keepdim=True)
    # A look at the outcome costs a synchronisation, which only the CPU has for nothing.
    if x.device.type == "cpu" and vocab > 4 * CPU_CANDIDATES:
        cut, settled = _cut_among(_best(x, CPU_CANDIDATES), norm_R1, rows, stages)
        if bool(settled.all()):
            return cut
    return _cut_among(_best(x, vocab), norm_R1, rows, stages)[0]


def _best(x: Tensor, count: int) -> Tensor:
    """The `count` largest values of each row, descending."""
    return x.topk(count).values if count < x.shape[1] else x.sort(dim=-1, descending=True).values


def _cut_among(best_RC: Tensor, norm_R1: Tensor | None, rows: RowSampling, stages: Stage) -> tuple[Tensor, Tensor]:
    """Cutoffs from each row's best values, and whether the values sufficed to know them.

    norm_R1: log of the whole row's mass, for rows without top-k (None: every filtered row has one).
    """
    width = best_RC.shape[1]
    top_k = rows.params_i[:, slots.I_TOP_K, None]
    limited = top_k > 0
    kept = torch.where(limited, top_k, width).clamp(max=width)
    ranks_C = torch.arange(width, device=best_RC.device)
    settled = limited & (top_k <= width)
    unfiltered = ~limited
    if stages & Stage.TOP_P:
        top_p = rows.params_f[:, slots.F_TOP_P, None]
        limits = top_p < 1.0
        mass = best_RC.masked_fill(ranks_C >= kept, -math.inf)
        norm = mass.logsumexp(-1, keepdim=True)
        if norm_R1 is not None:
            norm = torch.where(limited, norm, norm_R1)
        share = (mass - norm).exp_()
        before = share.cumsum(-1) - share
        inside = ((before < top_p) & (ranks_C < kept)).sum(-1, keepdim=True).clamp(min=1)
        settled = settled | (limits & (inside < width))
        kept = torch.where(limits, inside, kept)
        unfiltered = unfiltered & ~limits
    cut = best_RC.gather(1, kept - 1).masked_fill(unfiltered, -math.inf)
    return cut[:, 0], (settled | unfiltered)[:, 0]


def _seeds(params_i: Tensor) -> Tensor:
    low = params_i[:, slots.I_SEED_LOW].long() & 0xFFFFFFFF
    return (params_i[:, slots.I_SEED_HIGH].long() << 32) | low
