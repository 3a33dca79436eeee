"""Cases of prepare_experts: weight classes times sorted rows, against each row times its expert's dequantized matrix in
fp64. Some experts have no rows, one has most.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import torch

from tokenmill.kernels.case import ROUNDING, Call, Case, draw, dtype_name
from tokenmill.kernels.cases.prepare_linear import WEIGHTS, Make
from tokenmill.weights.contract import Weight

COUNTS: dict[str, tuple[int, ...]] = {"one row": (0, 0, 1, 0), "uneven": (3, 0, 29, 1), "last empty": (2, 5, 1, 0)}
KINDS = ("dense", "int4-g128", "fp8-block", "mxfp4")
N, M = 256, 256


def make(kind: Make, counts: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Call:
    weights = tuple(_expert(kind, index) for index in range(len(counts)))
    biases = tuple(draw(N, seed=40 + index) for index in range(len(counts)))
    x_PM = draw(sum(counts), M, seed=39, dtype=dtype)
    owners = [expert for expert, count in enumerate(counts) for _ in range(count)]
    rows = [weights[e].dequantize(torch.float32).double() @ x.double() + biases[e].double()
            for e, x in zip(owners, x_PM, strict=True)]  # fmt: skip
    sizes = [weights[e].dequantize(torch.float32).double().abs() @ x.double().abs() + biases[e].double().abs()
             for e, x in zip(owners, x_PM, strict=True)]  # fmt: skip
    held = tuple(weight.to(device) for weight in weights), tuple(bias.to(device) for bias in biases)
    ends_E = torch.tensor(list(accumulate(counts)), device=device)
    # Weights, inputs' products and the bias are each rounded against the sum of their sizes.
    unit = torch.stack(sizes) * ROUNDING[dtype]
    return Call((*held, dtype), torch.stack(rows), unit, lambda prepared: prepared(x_PM.to(device), ends_E))


def _expert(kind: Make, index: int) -> Weight:
    """Halves of the rows exchanged for every second one, so that neighbours differ."""
    weight = kind(N, M)
    first, second = weight.split(0, (N // 2, N // 2))
    return second.join(0, (first,)) if index % 2 else weight


def case(name: str, counts: str, dtype: torch.dtype) -> Case:
    pairs = sum(COUNTS[counts])
    # fp32 adds up the roundings of 256 sums; half types round once, at the end.
    tolerance = 12 if dtype == torch.float32 else 3
    label = f"{name}-{counts}-{dtype_name(dtype)}"
    moved = sum(WEIGHTS[name](N, M).nbytes for count in COUNTS[counts] if count) + pairs * (N + M) * dtype.itemsize
    return Case(label, partial(make, WEIGHTS[name], COUNTS[counts], dtype), tolerance, moved, 2 * pairs * N * M)


CASES = (
    *(case(name, counts, torch.float32) for name in KINDS for counts in COUNTS),
    *(case("dense", "uneven", dtype) for dtype in (torch.float16, torch.bfloat16)),
)
