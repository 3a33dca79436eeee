"""Every op of every backend on every case, on a GPU."""

from __future__ import annotations

import pytest
import torch

from tokenmill import find
from tokenmill.kernels.case import load_cases, ops_with_cases

BACKENDS = ("reference", "triton")


def tried() -> list[object]:
    return [
        pytest.param(op, backend, case, id=f"{op}-{backend}-{case}")
        for op in ops_with_cases()
        for backend in BACKENDS
        if op in find.names(f"tokenmill.kernels.{backend}")
        for case in load_cases(op)
    ]


@pytest.mark.parametrize(("op", "backend", "case"), tried())
def test_an_op_is_as_exact_as_its_case_asks(op, backend, case):
    call = case.make(torch.device("cuda"))
    function = getattr(find.load(f"tokenmill.kernels.{backend}", op), op)
    error = call.error(function(*call.arguments))
    assert error <= case.tolerance, f"{error:.3g} units, allowed {case.tolerance}"
