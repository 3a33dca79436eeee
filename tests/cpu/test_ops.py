"""Every op of every CPU backend on every case; how ops are chosen; what linears refuse."""

from __future__ import annotations

import pytest
import torch

from tokenmill import find
from tokenmill.kernels.bind import BACKENDS, BindFacts, bind
from tokenmill.kernels.case import Call, load_cases, ops_with_cases

CPU = torch.device("cpu")


def tried() -> list[tuple]:
    served = {backend: find.names(f"tokenmill.kernels.{backend}") for backend in ("reference", *BACKENDS["cpu"])}
    return [
        pytest.param(op, backend, case, id=f"{op}-{backend}-{case}")
        for op in ops_with_cases()
        for backend, ops in served.items()
        if op in ops
        for case in load_cases(op)
    ]


@pytest.mark.parametrize(("op", "backend", "case"), tried())
def test_an_op_is_as_exact_as_its_case_asks(op, backend, case):
    call = case.make(CPU)
    function = getattr(find.load(f"tokenmill.kernels.{backend}", op), op)
    error = call.error(function(*call.arguments))
    assert error <= case.tolerance, f"{error:.3g} units, allowed {case.tolerance}"


def test_every_primitive_has_cases():
    from dataclasses import fields

    from tokenmill.kernels.ops import Primitives

    assert set(ops_with_cases()) >= {field.name for field in fields(Primitives)}


def test_a_case_fails_on_nan_on_a_wrong_value_and_on_a_wrong_shape():
    call = Call((), torch.ones(3, dtype=torch.float64), 0.01)
    assert call.error(torch.ones(3)) == 0
    assert call.error(torch.tensor([1, 1, 1.05])) == pytest.approx(5, rel=1e-3)
    assert call.error(torch.tensor([1, 1, torch.nan])) == float("inf")
    with pytest.raises(ValueError, match="expected"):
        call.error(torch.ones(1))


def test_the_cpu_backend_is_bound_where_it_serves_and_the_reference_elsewhere():
    ops = bind(CPU, BindFacts(torch.float32))
    assert ops.backends["attention"] == "cpu" and ops.backends["rms_norm"] == "reference"
    assert set(bind(CPU, BindFacts(torch.float32), ()).backends.values()) == {"reference"}


@pytest.mark.parametrize("case", [c for c in load_cases("attention") if "NaN" not in c.name], ids=str)
def test_cpu_attention_leaves_to_the_reference_only_what_it_must(case, monkeypatch):
    """Padded rows and variants; a finite result is never computed twice."""
    module = find.load("tokenmill.kernels.cpu", "attention")
    called = []
    reference = module.reference
    monkeypatch.setattr(module, "reference", lambda *arguments: called.append(1) or reference(*arguments))
    call = case.make(CPU)
    assert call.error(module.attention(*call.arguments)) <= case.tolerance
    assert bool(called) == case.name.startswith(("padded", "window", "softcap", "alibi", "sinks", "ahead"))
