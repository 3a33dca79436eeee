"""Cases of cutoffs: rows that differ in what they ask, against the definitions written value by value in fp64.

What is compared is the cutoff itself: it is one of the row's values (or -inf, which is seen as -1000).
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from tokenmill.kernels.case import Call, Case, draw

# (top_k, top_p, min_p): 0, 1 and 0 ask for nothing.
ASKED: dict[str, tuple[tuple[int, float, float], ...]] = {
    "nothing": ((0, 1.0, 0.0),) * 3,
    "top-k": ((1, 1.0, 0.0), (40, 1.0, 0.0), (299, 1.0, 0.0)),
    "top-p": ((0, 0.8, 0.0), (0, 0.05, 0.0), (0, 0.999, 0.0)),
    "min-p": ((0, 1.0, 0.1), (0, 1.0, 1.0)),
    "mixed": ((50, 0.9, 0.0), (0, 0.5, 0.02), (0, 1.0, 0.0), (3, 0.99, 0.3), (20, 0.3, 0.0)),
}
SHAPES = (300, 9001)


def make(name: str, vocab: int, masked: bool, device: torch.device) -> Call:
    asked = ASKED[name]
    x_RV = draw(len(asked), vocab, seed=50) * 3
    # Values that occur often, so that cutoffs fall on ties.
    x_RV[:, ::3] = (x_RV[:, ::3] * 4).round() / 4
    if masked:
        x_RV[:, draw(vocab, seed=51) > 0] = -math.inf
    top_k, top_p, min_p = (list(column) for column in zip(*asked, strict=True))
    truth = torch.tensor([cutoff(row, *ask) for row, ask in zip(x_RV.double(), asked, strict=True)]).double()
    floats = partial(torch.tensor, dtype=torch.float32, device=device)
    arguments = (x_RV.to(device), torch.tensor(top_k, dtype=torch.int32, device=device), floats(top_p), floats(min_p))
    return Call(arguments, truth, 1e-6, lambda cut_R: cut_R.clamp(min=-1000.0))


def cutoff(x_V: Tensor, top_k: int, top_p: float, min_p: float) -> float:
    """Walks down the sorted values and stops where one must not live any more."""
    values: list[float] = sorted(x_V.tolist(), reverse=True)[: top_k or None]
    sizes = [math.exp(value - values[0]) for value in values]
    total, before, cut = sum(sizes), 0.0, values[0]
    for value, size in zip(values, sizes, strict=True):
        if top_p < 1.0 and before >= top_p * total:
            break
        before, cut = before + size, value
    if top_k == 0 and top_p >= 1.0:
        cut = -math.inf
    least: float = values[0] + math.log(min_p) if min_p else -math.inf
    return max(cut, least, -1000.0)


def case(name: str, vocab: int, masked: bool = False) -> Case:
    moved = 4 * vocab * len(ASKED[name])
    label = f"{name}-V{vocab}" + "-masked" * masked
    return Case(label, partial(make, name, vocab, masked), 1.0, moved, 4 * vocab * len(ASKED[name]))


CASES = (*(case(name, vocab) for name in ASKED for vocab in SHAPES), case("mixed", 9001, masked=True))
