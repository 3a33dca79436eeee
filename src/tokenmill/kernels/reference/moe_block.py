"""Block op: a mixture of experts. T tokens, k experts a token, P = T * k pairs of both, E experts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import MoeParts, Norm, Primitives


def moe_block(ops: Primitives, stream: Stream, parts: MoeParts, following: Norm) -> Stream:
    """The residual plus the experts' weighted sum (and the shared expert), reduced over ranks once."""
    x_TD = ops.rms_norm(stream.residual_TD, parts.norm.weight_D, parts.norm.eps)
    y_TD = _experts(ops, x_TD, parts)
    if parts.shared is not None:
        y_TD = y_TD + _shared(ops, x_TD, parts)
    return Stream(stream.residual_TD + parts.reduce(y_TD.to(x_TD.dtype)))


def _experts(ops: Primitives, x_TD: Tensor, parts: MoeParts) -> Tensor:
    """fp32 [T, D]. Pairs are put back in order before they are summed, so that the sum's order never varies."""
    logits_TE = functional.linear(x_TD.float(), parts.router_ED, parts.router_bias_E)
    weights_Tk, experts_Tk = ops.route(logits_TE, parts.choice_bias_E, parts.routing)
    k = parts.routing.top_k
    sorted_P, order_P = experts_Tk.flatten().sort(stable=True)
    experts_E = torch.arange(len(parts.router_ED), device=x_TD.device)
    ends_E = torch.searchsorted(sorted_P, experts_E, right=True)
    activation = parts.activation or ops.silu_mul
    y_PD = parts.down(activation(parts.gate_up(x_TD[order_P // k], ends_E)), ends_E)
    back_PD = torch.empty_like(y_PD)
    back_PD[order_P] = y_PD
    return (back_PD.view(-1, k, back_PD.shape[1]).float() * weights_Tk[..., None]).sum(1)


def _shared(ops: Primitives, x_TD: Tensor, parts: MoeParts) -> Tensor:
    assert parts.shared is not None
    y_TD = parts.shared.down(ops.silu_mul(parts.shared.gate_up(x_TD))).float()
    if parts.shared.gate_1D is None:
        return y_TD
    return y_TD * functional.linear(x_TD.float(), parts.shared.gate_1D).sigmoid()
