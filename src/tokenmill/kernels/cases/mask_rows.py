"""Cases of mask_rows: some rows of several, with a vocabulary that fills no whole byte, bit by bit."""

from __future__ import annotations

from functools import partial

import torch

from tokenmill.kernels.case import Call, Case, draw

ROWS, MASKED = 5, (3, 0, 4)
# Stands for -inf in what is compared.
FORBIDDEN = -1000.0


def make(vocab: int, device: torch.device) -> Call:
    x_RV, width = draw(ROWS, vocab, seed=70), -(-vocab // 8)
    bits_MB = torch.randint(0, 256, (len(MASKED), width), generator=torch.Generator().manual_seed(71)).byte()
    bits_MB[1] = 0
    truth = x_RV.double()
    for row, mask in zip(MASKED, bits_MB.tolist(), strict=True):
        for token in range(vocab):
            if not mask[token // 8] >> token % 8 & 1:
                truth[row, token] = FORBIDDEN
    changed = x_RV.to(device)
    arguments = changed, torch.tensor(MASKED, device=device), bits_MB.to(device)
    return Call(arguments, truth, 1.0, lambda _: changed.clamp(min=FORBIDDEN))


def case(vocab: int) -> Case:
    return Case(f"V{vocab}", partial(make, vocab), 1e-9, 4 * vocab * len(MASKED), vocab * len(MASKED))


CASES = tuple(case(vocab) for vocab in (5, 300, 2048, 2051))
