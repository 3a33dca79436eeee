"""Cases of route: every kind of choice, against the published formulas written token by token in fp64.

The result compared is the dense row [T, E] of weights: 0 where an expert is not chosen.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenmill.kernels.case import ROUNDING, Call, Case, draw
from tokenmill.kernels.ops import Routing

KINDS: dict[str, tuple[Routing, bool]] = {
    "mixtral": (Routing(2), False),
    "qwen2_moe": (Routing(4, normalise=False), False),
    "qwen3_moe": (Routing(8), False),
    "deepseek_v2": (Routing(6, normalise=False, scale=16.0, groups=8, top_groups=3), False),
    "deepseek_v3": (Routing(8, "sigmoid", True, 2.5, groups=8, top_groups=4, group_votes=2), True),
}
T, E = 37, 64


def make(kind: str, device: torch.device) -> Call:
    routing, biased = KINDS[kind]
    logits_TE = draw(T, E, seed=21) * 2
    bias_E = draw(E, seed=22) * 0.3 if biased else None
    truth = torch.stack([_token(row, bias_E, routing) for row in logits_TE.double()])
    arguments = (logits_TE.to(device), None if bias_E is None else bias_E.to(device), routing)
    unit = truth * ROUNDING[torch.float32] + 2.0**-40
    return Call(arguments, truth, unit, _dense)


def _dense(returned: Any) -> Tensor:
    weights_Tk, experts_Tk = returned
    return torch.zeros(T, E, device=weights_Tk.device).scatter(1, experts_Tk, weights_Tk)


def _token(logits_E: Tensor, bias_E: Tensor | None, routing: Routing) -> Tensor:
    values = logits_E.tolist()
    if routing.score == "sigmoid":
        scores = [1 / (1 + math.exp(-x)) for x in values]
    else:
        total = sum(math.exp(x) for x in values)
        scores = [math.exp(x) / total for x in values]
    ranked = scores if bias_E is None else [s + b for s, b in zip(scores, bias_E.double().tolist(), strict=True)]
    size = E // routing.groups
    votes = {g: sum(sorted(ranked[g * size : (g + 1) * size])[-routing.group_votes :]) for g in range(routing.groups)}
    kept = sorted(votes, key=lambda g: -votes[g])[: routing.top_groups]
    candidates = [e for e in range(E) if e // size in kept]
    chosen = sorted(candidates, key=lambda e: -ranked[e])[: routing.top_k]
    share = sum(scores[e] for e in chosen) if routing.normalise else 1.0
    return torch.tensor([scores[e] / share * routing.scale if e in chosen else 0.0 for e in range(E)]).double()


def case(kind: str) -> Case:
    return Case(kind, partial(make, kind), 32, T * E * 4, 4 * T * E)


CASES = tuple(case(kind) for kind in KINDS)
