"""Cases: what an op is tried on. One table per op (`kernels/cases/<op>.py`, `CASES`) feeds its tests and its benchmark.

A case makes its own inputs from a seed, knows the true result in fp64 by another way than the op's (a closed form, or
torch's own function in double precision), how large an error is allowed and what the op must move and compute at least.
A new backend inherits all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenmill import find

PACKAGE = "tokenmill.kernels.cases"
# Half of the last place of each dtype, relative.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
DTYPES = tuple(ROUNDING)
# And absolute, near zero.
SMALLEST = {torch.float32: 2.0**-40, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-40}


def same(value: Any) -> Tensor:
    """The op's return is its result."""
    result: Tensor = value
    return result


@dataclass(slots=True)
class Call:
    """One call, ready. `result` turns what the op returned (or changed) into what is compared with `truth` (fp64, CPU).

    unit: size of one error, a number or a tensor like truth; the case's tolerance counts units.
    """

    arguments: tuple[Any, ...]
    truth: Tensor
    unit: Tensor | float
    result: Callable[[Any], Tensor] = same

    def error(self, returned: Any) -> float:
        """The largest difference in units; infinite where the result is not finite."""
        got = self.result(returned).double().cpu()
        if got.shape != self.truth.shape:
            raise ValueError(f"the result is {tuple(got.shape)}; expected {tuple(self.truth.shape)}")
        worst = float(((got - self.truth).abs() / self.unit).max())
        return worst if bool(got.isfinite().all()) else float("inf")


@dataclass(frozen=True, slots=True)
class Case:
    """`make(device)` gives a fresh call. nbytes and flops: what any implementation must move and compute."""

    name: str
    make: Callable[[torch.device], Call]
    tolerance: float
    nbytes: int
    flops: int

    def __str__(self) -> str:
        return self.name


def ops_with_cases() -> list[str]:
    return find.names(PACKAGE)


def load_cases(op: str) -> tuple[Case, ...]:
    cases: tuple[Case, ...] = find.load(PACKAGE, op).CASES
    return cases


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers on the CPU, the same on every device and backend."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
