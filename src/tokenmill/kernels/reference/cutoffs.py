"""cutoffs: the least value of each row that top-k, top-p and min-p let live, by a sort."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cutoffs(x_RV: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor) -> Tensor:
    """fp32 [R]; -inf where nothing is filtered. top-p is of what top-k left; ties at a cutoff live."""
    vocab = x_RV.shape[1]
    best_RV = x_RV.sort(dim=-1, descending=True).values
    limited_R1 = (top_k_R > 0)[:, None]
    kept_R1 = torch.where(limited_R1, top_k_R[:, None], vocab).clamp(max=vocab).long()
    ranks_V = torch.arange(vocab, device=x_RV.device)
    mass_RV = best_RV.masked_fill(ranks_V >= kept_R1, -math.inf).softmax(-1)
    before_RV = mass_RV.cumsum(-1) - mass_RV
    inside_R1 = ((before_RV < top_p_R[:, None]) & (ranks_V < kept_R1)).sum(-1, keepdim=True).clamp(min=1)
    nucleus_R1 = (top_p_R < 1.0)[:, None]
    last_R1 = torch.where(nucleus_R1, inside_R1, kept_R1) - 1
    cut_R = best_RV.gather(1, last_R1)[:, 0].masked_fill(~(limited_R1 | nucleus_R1)[:, 0], -math.inf)
    least_R = torch.where(min_p_R > 0, best_RV[:, 0] + min_p_R.log(), -math.inf)
    return torch.maximum(cut_R, least_R)
