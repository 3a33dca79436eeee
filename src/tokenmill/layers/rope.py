"""Rotary embedding tables for every scaling kind. Formulas: docs/rooms/layers.md, and the papers named there.

With f_i = theta^(-2i / K), i in 0..K/2-1, a token at position p turns pair i by p * f_i; kinds differ in how they bend
f_i, and in a factor on cos and sin. Everything is computed in fp32, as the references do. What depends on a prompt's
length (dynamic, qwen, longrope) comes in per token through `bases_T`, fixed for a request's life by
`engine.contract.RopeBase`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenmill.engine.contract import RopeBase

# "none": tokens are not turned; not a kind that a config.json may ask for.
KINDS = ("default", "linear", "dynamic", "qwen", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class RopeFacts:
    """A model's rotation, from its config. `max_position` is P; `original_max_position` O, of yarn, llama3, longrope.

    `attention_factor` multiplies cos and sin; None: the kind's own rule. `rotated_dim`: how many channels of a head are
    turned (0: all); pairs behind them stand still. `sections`: how many pairs, in order, go by time, rows and columns
    of a picture (): all by the position.
    """

    kind: str
    theta: float
    head_dim: int
    max_position: int
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    rotated_dim: int = 0
    sections: tuple[int, ...] = ()

    def base_rule(self) -> RopeBase | None:
        """How a prompt's length decides `bases_T`; None where it does not matter."""
        if self.kind in ("dynamic", "qwen"):
            return RopeBase(self.kind, self.theta, self.factor, self.max_position, self.head_dim)
        if self.kind == "longrope":
            return RopeBase(self.kind, self.theta, self.factor, self.original_max_position, self.head_dim)
        return None


class Rope:
    """cos and sin of tokens, on one device. Built once; `__call__` makes no host synchronisation."""

    def __init__(self, facts: RopeFacts, device: torch.device | str):
        self.facts = facts
        self.scale = attention_scale(facts)
        self.exponents = exponents(facts.head_dim).to(device)
        self.own_freqs = frequencies(facts).to(device)
        # Which row of positions turns each pair.
        axes = [axis for axis, count in enumerate(facts.sections) for _ in range(count)]
        self.axes_K = torch.tensor(axes, dtype=torch.long, device=device)
        self.long_freqs = frequencies(facts, long=True).to(device) if facts.kind == "longrope" else None

    def __call__(self, bases_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos_TK, sin_TK fp32 [T, K / 2]. bases_T as `RopeBase.for_prompt` gave them, 0: the model's own."""
        if positions_T.ndim == 2:
            return self._by_axes(bases_T, positions_T)
        angles_TK = positions_T.float()[:, None] * self._freqs(bases_T.float()[:, None])
        cos, sin = angles_TK.cos(), angles_TK.sin()
        return (cos, sin) if self.scale == 1.0 else (cos * self.scale, sin * self.scale)

    def _freqs(self, bases_T1: Tensor) -> Tensor:
        """Frequencies [1 or T, K / 2]."""
        if self.long_freqs is not None:
            return torch.where(bases_T1 > 0.5, self.long_freqs, self.own_freqs)
        if self.facts.kind in ("dynamic", "qwen"):
            if bases_T1.device.type == "cpu" and float(bases_T1.max()) <= self.facts.theta:
                return self.own_freqs[None]  # no prompt is long; on a CPU that may be looked at
            bent = 1.0 / bases_T1.clamp(min=1.0) ** self.exponents
            return torch.where(bases_T1 > 0.0, bent, self.own_freqs)
        return self.own_freqs[None]

    def _by_axes(self, bases_T: Tensor, positions_3T: Tensor) -> tuple[Tensor, Tensor]:
        """Positions along time, rows and columns: each pair goes by the row of its section."""
        angles_TK = positions_3T.float()[self.axes_K].T * self._freqs(bases_T.float()[:, None])
        return angles_TK.cos() * self.scale, angles_TK.sin() * self.scale


def exponents(head_dim: int) -> Tensor:
    """2i / K."""
    return torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim


def frequencies(facts: RopeFacts, long: bool = False) -> Tensor:
    """f_i of a prompt within the trained length (longrope: of a long one where `long`). fp32 [K / 2]."""
    if facts.rotated_dim:
        turned = frequencies(replace(facts, head_dim=facts.rotated_dim, rotated_dim=0), long)
        return torch.cat((turned, torch.zeros(facts.head_dim // 2 - len(turned))))
    plain = 1.0 / facts.theta ** exponents(facts.head_dim)
    if facts.kind == "none":
        return torch.zeros_like(plain)
    if facts.kind == "linear":
        return plain / facts.factor
    if facts.kind == "llama3":
        return _llama3(plain, facts)
    if facts.kind == "yarn":
        return _yarn(plain, facts)
    if facts.kind == "longrope":
        extension = facts.long_factor if long else facts.short_factor
        return 1.0 / (torch.tensor(extension, dtype=torch.float32) * facts.theta ** exponents(facts.head_dim))
    return plain


def _llama3(plain: Tensor, facts: RopeFacts) -> Tensor:
    """Long waves are divided by the factor, short ones kept, the band between blended."""
    wave = 2 * math.pi / plain
    original = facts.original_max_position
    smooth = (original / wave - facts.low_freq_factor) / (facts.high_freq_factor - facts.low_freq_factor)
    blended = (1 - smooth) * plain / facts.factor + smooth * plain
    bent = torch.where(wave > original / facts.low_freq_factor, plain / facts.factor, blended)
    return torch.where(wave < original / facts.high_freq_factor, plain, bent)


def _yarn(plain: Tensor, facts: RopeFacts) -> Tensor:
    """YaRN (arXiv 2309.00071): fast channels kept, slow ones interpolated, a ramp between."""
    K, theta = facts.head_dim, facts.theta

    def channel(rotations: float) -> float:
        return K * math.log(facts.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(facts.beta_fast), channel(facts.beta_slow)
    if facts.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, K - 1)
    width = (high - low) or 0.001
    ramp = ((torch.arange(K // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return plain / facts.factor * ramp + plain * (1 - ramp)


def attention_scale(facts: RopeFacts) -> float:
    """The factor on cos and sin."""
    if facts.kind not in ("yarn", "longrope"):
        return 1.0
    if facts.attention_factor is not None:
        return facts.attention_factor
    if facts.kind == "longrope":
        if facts.factor <= 1.0:
            return 1.0
        return math.sqrt(1 + math.log(facts.factor) / math.log(facts.original_max_position))
    if facts.mscale and facts.mscale_all_dim:
        return yarn_mscale(facts.factor, facts.mscale) / yarn_mscale(facts.factor, facts.mscale_all_dim)
    return yarn_mscale(facts.factor, 1.0)


def yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def logn_factors(positions_T: Tensor, trained_tokens: int) -> Tensor:
    """LogN attention's factor on q: log(p) / log(P) for the 1-based position p > P, else 1. fp32 [T]."""
    places = (positions_T.float() + 1).clamp(min=float(trained_tokens))
    return places.log() / math.log(trained_tokens)
