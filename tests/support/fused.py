"""A layer's blocks one behind the other with the Triton backend in its interpreter, against the reference's in fp32.

What one block hands to the next (`Stream.carry`) is private to a backend, so the cases of single ops cannot try it.
Prints, for every weight, the largest difference of what the layer leaves, over the largest number of its kind.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from tokenmill.distributed.group import NullGroup
from tokenmill.kernels.bind import BindFacts, bind
from tokenmill.kernels.case import draw
from tokenmill.kernels.cases.attention import Setup, row_meta
from tokenmill.kernels.cases.prepare_linear import WEIGHTS, int_group
from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import AttentionFacts, AttentionParts, Heads, MlpParts, Norm, Ops, Prepared
from tokenmill.kernels.triton import _held
from tokenmill.kv.contract import KVPages, KVShape
from tokenmill.kv.layout import kind_names, load_kind
from tokenmill.weights.contract import Weight

CPU = torch.device("cpu")
D, F, T, HEADS = 256, 416, 5, Heads(4, 2, 32)
SHAPE = KVShape(2, 32, 16)


def weight(name: str, n: int, m: int) -> Weight:
    return int_group(n, m, group=32) if name == "int4-g32" else WEIGHTS[name](n, m)


def layer(ops: Ops, name: str, norms: bool, bias: bool) -> tuple[AttentionParts, MlpParts]:
    def made(n: int, m: int) -> Prepared:
        return ops.primitives.prepare_linear(weight(name, n, m), draw(n, seed=n) if bias else None, torch.float32)

    reduce = NullGroup().all_reduce
    norm, head_norm = (Norm(1 + draw(size, seed=size) * 0.3, 1e-5) for size in (D, HEADS.head_dim))
    each = head_norm if norms else None
    channels = (HEADS.num_heads + 2 * HEADS.num_kv_heads) * HEADS.head_dim
    facts = AttentionFacts(HEADS.head_dim**-0.5)
    out = made(D, HEADS.num_heads * HEADS.head_dim)
    attention = AttentionParts(norm, made(channels, D), out, HEADS, facts, reduce, 0, each, each, norms)
    return attention, MlpParts(norm, made(2 * F, D), made(D, F), reduce)


def run(backends: tuple[str, ...], name: str, kv: str, norms: bool) -> list[Tensor]:
    """The residual behind a layer's end and what the next layer's start makes of it: q, and K and V read back."""
    ops = bind(CPU, BindFacts(torch.float32, kv), backends)
    attention, mlp = layer(ops, name, norms, bias=name.startswith("int4"))
    rows = row_meta(Setup(((5 + T, T),)), torch.zeros(1, 1, dtype=torch.int32), CPU)
    angle_TK = draw(T, HEADS.head_dim // 2, seed=1)
    rows.cos_TK, rows.sin_TK, rows.logn_T = angle_TK.cos(), angle_TK.sin(), 1 + draw(T, seed=2).abs()
    rows.writes_T = (torch.tensor([3, 0, 17, -1, 30]),)
    pages: KVPages = load_kind(kv).alloc(2, SHAPE, torch.float32, CPU)
    y_TM = draw(T, HEADS.num_heads * HEADS.head_dim, seed=4)
    stream = ops.attn_out(Stream(draw(T, D, seed=3)), y_TM, attention, mlp.norm)
    stream = ops.mlp_out(stream, ops.mlp_in(stream, mlp), mlp, attention.norm)
    q_THK = ops.attn_in(stream, attention, rows, pages)
    kept = pages.kind.gather(pages, torch.tensor([[3, 0, 17, 30]]))
    return [stream.residual_TD, q_THK, *kept]


def main() -> None:
    # So that weights as small as these are split at all.
    _held.LEAST_CHUNKS = 1
    found = {}
    tried = [(name, "auto", False) for name in ("dense", "int4-g128", "int4-g32", "int8-channel", "fp8-block")]
    # The interpreter carries e4m3 roundings into the exponent wrongly: fp8 caches are for GPUs.
    tried += [("dense", kv, True) for kv in kind_names() if kv != "fp8"]
    for name, kv, norms in tried:
        pairs = zip(run(("triton",), name, kv, norms), run((), name, kv, norms), strict=True)
        found[f"{name} {kv}"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
