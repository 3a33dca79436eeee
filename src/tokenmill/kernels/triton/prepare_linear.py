"""prepare_linear: products of few tokens by own kernels, of many by the library's.

A `TritonLinear` can be seen through by block ops that fuse what comes before or behind (`held_of`). Where the library
reads the weight as it is (Dense) its product serves all that is not fused; 4-bit weights are written out as a plain
matrix for it, 8-bit ones too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.kernels.ops import Prepared
from tokenmill.kernels.reference.prepare_linear import prepare_linear as reference
from tokenmill.kernels.triton import _matmul
from tokenmill.kernels.triton._held import Held, hold
from tokenmill.kernels.triton._launch import linear, product
from tokenmill.kernels.triton._slab import widened
from tokenmill.log import get_logger
from tokenmill.weights.contract import Weight

# Above so many tokens a matrix is written out: its bytes then cost less than the library's product saves. Estimated.
MOST_TOKENS = 256


def prepare_linear(weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Prepared:
    """As the reference, which takes the weights these kernels do not."""
    held = hold(weight, bias, dtype)
    if isinstance(held, str):
        get_logger().info("triton does not serve prepare_linear of %s", held)
        return reference(weight, bias, dtype)
    return TritonLinear(held)


class TritonLinear:
    """x_TM -> x W^T + bias in the model's dtype."""

    def __init__(self, held: Held):
        self.held = held

    def __call__(self, x_TM: Tensor) -> Tensor:
        held, lead = self.held, x_TM.shape[:-1]
        x_TM = x_TM.reshape(-1, held.num_in)
        if held.kind == _matmul.DENSE:
            out_TN = functional.linear(x_TM, held.w, held.bias_N)
        elif len(x_TM) > MOST_TOKENS:
            out_TN = self._by_matrix(x_TM)
        elif len(x_TM):
            out_TN = linear(product(held, x_TM))[0]
        else:
            out_TN = x_TM.new_empty(0, held.num_out)
        return out_TN.view(*lead, held.num_out)

    def _by_matrix(self, x_TM: Tensor) -> Tensor:
        held = self.held
        x_TM = x_TM if held.order_M is None else x_TM[:, held.order_M]
        bias_N = None if held.bias_N is None else held.bias_N.to(held.dtype)
        matrix_NM = widened(held) if held.kind == _matmul.NIBBLES else plain(held)
        return functional.linear(x_TM, matrix_NM, bias_N)

    def load(self, weight: Weight, bias: Tensor | None) -> None:
        """Other numbers into the same storage, which captured graphs point to."""
        other = hold(weight, bias, self.held.dtype)
        if isinstance(other, str) or [_form(t) for t in other.tensors()] != [_form(t) for t in self.held.tensors()]:
            raise ValueError(f"{type(weight).__name__} {weight.shape} cannot replace a linear of another form, "
                             f"{(self.held.num_out, self.held.num_in)}; a bias can be replaced, not added or dropped")
        for mine, its in zip(self.held.tensors(), other.tensors(), strict=True):
            mine.copy_(its)


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def plain(held: Held) -> Tensor:
    """Codes of 8 bits as a matrix in the model's dtype."""
    codes = held.w.view(torch.int8) if held.sign == _matmul.SIGNED else held.w
    values_NM = (held.w.view(torch.float8_e4m3fn) if held.sign == _matmul.E4M3 else codes).to(torch.float32)
    if held.has_zeros:
        values_NM = values_NM - _spread(held.zeros_QN.float(), held)
    return (values_NM * _spread(held.scales_QN.float(), held)).to(held.dtype)


def _spread(per_group_QN: Tensor, held: Held) -> Tensor:
    spread_NM = per_group_QN[:, : held.num_out].T.repeat_interleave(held.group, 1)
    return spread_NM[:, : held.num_in]


def held_of(prepared: object) -> Held | None:
    """What a linear holds, where it is one of these (layers wrap what they prepared)."""
    inner = getattr(prepared, "prepared", prepared)
    return inner.held if isinstance(inner, TritonLinear) else None
