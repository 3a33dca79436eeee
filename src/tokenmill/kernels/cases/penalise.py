"""Cases of penalise: rows that ask for different things, some for nothing, against the definition in fp64."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tokenmill.kernels.case import ROUNDING, SMALLEST, Call, Case, draw

# repetition, presence, frequency
ASKED = ((1.0, 0.0, 0.0), (1.2, 0.0, 0.0), (0.8, 0.5, 0.0), (1.0, 0.0, 0.3), (1.3, -0.4, -0.2))
# Columns in front of the factors, as a table of parameters has them.
BEFORE = 3
SHAPES = (7, 300, 2048, 9001)


def make(vocab: int, device: torch.device) -> Call:
    R, S = len(ASKED), len(ASKED) + 2
    x_RV = draw(R, vocab, seed=60) * 4
    places_R = torch.tensor([4, 0, 6, 2, 5])
    seen_SV, counts_SV = draw(S, vocab, seed=61) > 0.5, draw(S, vocab, seed=62).mul(2).int().clamp(0, 5).short()
    table = torch.zeros(R, BEFORE + 4)
    table[:, BEFORE : BEFORE + 3] = torch.tensor(ASKED)
    truth = penalised(x_RV.double(), seen_SV[places_R], counts_SV[places_R].double())
    # A quotient and two differences, each rounded to the larger of what goes in.
    unit = (x_RV.double().abs() * 1.3 + 2) * ROUNDING[torch.float32] + SMALLEST[torch.float32]
    changed, factors_R3 = x_RV.to(device), table.to(device)[:, BEFORE : BEFORE + 3]
    arguments = changed, places_R.to(device), seen_SV.to(device), counts_SV.to(device), factors_R3
    return Call(arguments, truth, unit, lambda _: changed)


def penalised(x_RV: Tensor, seen_RV: Tensor, counts_RV: Tensor) -> Tensor:
    """Row by row, each penalty by itself, as the model cards of these parameters define them."""
    rows = []
    for x_V, seen_V, counts_V, (repetition, presence, frequency) in zip(x_RV, seen_RV, counts_RV, ASKED, strict=True):
        out_V = x_V.clone()
        known_V = seen_V | (counts_V > 0)
        out_V[known_V & (x_V > 0)] /= repetition
        out_V[known_V & (x_V <= 0)] *= repetition
        out_V[counts_V > 0] -= presence
        rows.append(out_V - frequency * counts_V)
    return torch.stack(rows)


def case(vocab: int) -> Case:
    return Case(f"V{vocab}", partial(make, vocab), 3.0, 11 * vocab * len(ASKED), 4 * vocab * len(ASKED))


CASES = tuple(case(vocab) for vocab in SHAPES)
