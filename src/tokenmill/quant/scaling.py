"""Scales that move inside a block without changing what it computes: out of a norm or a linear, into its readers.

A family declares where that is possible (`QuantGroup`). The value heads feed `out` through attention, which mixes
tokens but not channels, so a scale may pass there too; query heads that share a kv head must then share the scale.
D hidden, G kv heads, K head dim, M in-features of the readers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.quant.block import SITES, Block, BlockFacts


@dataclass(frozen=True, slots=True)
class Move:
    """One place where a scale can move: `source` gives it up, the linears of `site` take it."""

    site: str
    source: str
    linears: tuple[str, ...]


def moves(facts: BlockFacts) -> tuple[Move, ...]:
    """What the family declares, in the order of the sites."""
    found = {}
    for group in facts.family.quant:
        site = next((s for s in SITES if group.linears[0] in facts.names(s)), None)
        if site is not None and set(group.linears) == set(facts.names(site)):
            found[site] = Move(site, group.source, group.linears)
    return tuple(found[site] for site in SITES if site in found)


def tie(facts: BlockFacts, move: Move, per_channel_M: Tensor) -> Tensor:
    """Per-channel numbers averaged over the query heads that share a kv head; as they are at the other sites."""
    if move.site != "out":
        return per_channel_M
    a = facts.attention
    shared = per_channel_M.view(a.num_kv_heads, -1, a.head_dim).mean(1, keepdim=True)
    return shared.expand(-1, a.num_heads // a.num_kv_heads, -1).reshape(-1)


def apply(block: Block, move: Move, scales_M: Tensor) -> None:
    """Readers' columns times the scale, the source divided by it. At "out" the scale must be tied."""
    if move.site in ("qkv", "gate_up"):
        scales_M = _divide_norm(block, f"{move.source}.weight", scales_M)
    elif move.site == "out":
        _divide_values(block, scales_M)
    else:
        _divide_rows(block, move.source, scales_M)
    for name in move.linears:
        block.linears[name] = block.linears[name] * scales_M


def _divide_norm(block: Block, norm: str, scales_M: Tensor) -> Tensor:
    """Divides a norm and rounds it to the dtype it is stored in; the scale that this truly was."""
    before = block.vectors[norm]
    block.vectors[norm] = (before / scales_M).to(block.stored).float()
    kept = block.vectors[norm]
    return torch.where(kept != 0, before / kept, torch.ones_like(kept))


def _divide_values(block: Block, scales_M: Tensor) -> None:
    facts = block.facts
    a = facts.attention
    per_value = scales_M.view(a.num_kv_heads, -1, a.head_dim)[:, 0].reshape(-1)
    names = facts.names("qkv")
    sizes = [len(block.linears[name]) for name in names]
    rows = torch.ones(sum(sizes), device=scales_M.device)
    rows[facts.qkv_rows[2]] = per_value
    for name, part in zip(names, torch.split(rows, sizes), strict=True):
        _divide_rows(block, name, part)


def _divide_rows(block: Block, name: str, scales_N: Tensor) -> None:
    block.linears[name] = block.linears[name] / scales_N[:, None]
    if f"{name}.bias" in block.vectors:
        block.vectors[f"{name}.bias"] = block.vectors[f"{name}.bias"] / scales_N
