"""When block ops run as one kernel, and what they hand on: `Stream.carry` holds the residual's sums of squares [P, T].

A block is fused where its linear is held here, ranks have nothing to sum and tokens are few: above, norms cost little
beside the product, and the product has its own best shapes.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.distributed.group import NullGroup
from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import Norm, Prepared, Primitives, Reduce
from tokenmill.kernels.triton._held import tiling
from tokenmill.kernels.triton._launch import Normed, Product, linear, product
from tokenmill.kernels.triton.prepare_linear import held_of

MOST_TOKENS = 32


def alone(reduce: Reduce) -> bool:
    """Whether a reduction is over one rank."""
    return isinstance(getattr(reduce, "__self__", None), NullGroup)


def normed_input(ops: Primitives, stream: Stream, norm: Norm) -> Tensor:
    return ops.rms_norm(stream.residual_TD, norm.weight_D, norm.eps)


def fused_product(linear_: Prepared, stream: Stream, norm: Norm, block_n: int) -> Product | None:
    """A product of the normed residual, norm included; None where it is better done apart."""
    held, x_TD = held_of(linear_), stream.residual_TD
    if held is None or stream.carry is None or not 0 < len(x_TD) <= MOST_TOKENS or held.order_M is not None:
        return None
    return product(held, x_TD, Normed(norm, stream.carry), tiling(held, len(x_TD), block_n))


def add_to_stream(linear_: Prepared, stream: Stream, y_TM: Tensor, reduce: Reduce) -> Stream:
    """The residual plus a projection of y. Few tokens: one kernel, which leaves sums of squares for the next norm."""
    held = held_of(linear_)
    if held is None or not alone(reduce) or not 0 < len(y_TM) <= MOST_TOKENS:
        return Stream(stream.residual_TD + reduce(linear_(y_TM)))
    residual_TD, squares_PT = linear(product(held, y_TM), stream.residual_TD)
    return Stream(residual_TD, squares_PT)
