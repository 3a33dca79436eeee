"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.ops import Routing


def route(logits_TE: Tensor, choice_bias_E: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
    """weights_Tk fp32 and experts_Tk int64, the best first. Scores in fp32."""
    logits = logits_TE.float()
    scores_TE = logits.sigmoid() if routing.score == "sigmoid" else logits.softmax(-1)
    choice_TE = scores_TE if choice_bias_E is None else scores_TE + choice_bias_E
    if routing.groups > 1:
        choice_TE = _best_groups(choice_TE, routing)
    experts_Tk = choice_TE.topk(routing.top_k, -1).indices
    weights_Tk = scores_TE.gather(1, experts_Tk)
    if routing.normalise:
        weights_Tk = weights_Tk / (weights_Tk.sum(-1, keepdim=True) + 1e-20)
    return weights_Tk * routing.scale, experts_Tk


def _best_groups(choice_TE: Tensor, routing: Routing) -> Tensor:
    """-inf outside the best groups."""
    grouped = choice_TE.view(len(choice_TE), routing.groups, -1)
    votes_Tg = grouped.topk(routing.group_votes, -1).values.sum(-1)
    kept = votes_Tg.topk(routing.top_groups, -1).indices
    out_Tg = torch.ones_like(votes_Tg, dtype=torch.bool).scatter(1, kept, False)
    return grouped.masked_fill(out_Tg[..., None], float("-inf")).flatten(1)
