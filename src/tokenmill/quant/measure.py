"""How far the quantized model is from the plain one, on text no method saw: KL, top-1 agreement, both perplexities.

Works on the two residual streams that leave the last block; the weights of embedding and head are the same for both.
S tokens of a window, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tokenmill.kernels.reference.rms_norm import rms_norm

CHUNK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Ending:
    """What follows the last block."""

    norm_D: Tensor
    eps: float
    head_VD: Tensor

    def log_probs(self, residual_SD: Tensor) -> Tensor:
        return torch.log_softmax(rms_norm(residual_SD, self.norm_D, self.eps) @ self.head_VD.T, -1)


@dataclass(frozen=True, slots=True)
class Quality:
    """kl: mean KL divergence (nats) of the quantized from the plain model; top1: how often both prefer one token."""

    kl: float
    top1: float
    perplexity_plain: float
    perplexity_quantized: float
    tokens: int

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def quality(ending: Ending, plain: list[Tensor], quantized: list[Tensor], ids: list[Tensor]) -> Quality | None:
    """Over windows; None where there are none."""
    sums, tokens = torch.zeros(4, dtype=torch.float64), 0
    for p_SD, q_SD, ids_S in zip(plain, quantized, ids, strict=True):
        for start in range(0, len(ids_S), CHUNK_TOKENS):
            stop = start + CHUNK_TOKENS
            p, q = ending.log_probs(p_SD[start:stop]), ending.log_probs(q_SD[start:stop])
            following = ids_S[start + 1 : stop + 1]
            sums += torch.stack(
                [
                    (p.exp() * (p - q)).sum(),
                    (p.argmax(-1) == q.argmax(-1)).sum().float(),
                    -p[: len(following)].gather(1, following[:, None]).sum(),
                    -q[: len(following)].gather(1, following[:, None]).sum(),
                ]
            ).cpu()
        tokens += len(ids_S)
    if not tokens:
        return None
    kl, top1, nll_plain, nll_quantized = sums.tolist()
    scored = tokens - len(ids)
    return Quality(
        kl / tokens, top1 / tokens, math.exp(nll_plain / scored), math.exp(nll_quantized / scored), tokens
    )
