"""Linears of the CPU backend: which are held as half precision numbers, and that none loses a digit by it."""

from __future__ import annotations

import pytest
import torch

from tokenmill.kernels.bind import BindFacts, bind
from tokenmill.kernels.case import draw, load_cases
from tokenmill.kernels.cases.prepare_linear import WEIGHTS, int_group
from tokenmill.kernels.cpu import prepare_linear as module
from tokenmill.kernels.cpu.prepare_linear import HalfLinear, HeldLinear, exact_half, prepare_linear
from tokenmill.kernels.reference.prepare_linear import DenseLinear, DequantLinear
from tokenmill.weights.classes import Dense

CPU = torch.device("cpu")
FP32 = torch.float32
HELD = {
    "dense": DenseLinear, "dense-bf16": HalfLinear, "int4-g128": HalfLinear, "int4-g128-symmetric": HalfLinear,
    "int4-g64-act-order": HalfLinear, "int8-g128": HalfLinear, "int3-row": HalfLinear, "int8-channel": HalfLinear,
    "fp8-tensor": HalfLinear, "fp8-channel": HalfLinear, "fp8-block": HalfLinear, "mxfp4": HalfLinear,
}  # fmt: skip
needs_half = pytest.mark.skipif(not module.has_half(), reason="this torch has no FBGEMM: every class is held in fp32")


@needs_half
@pytest.mark.parametrize("case", load_cases("prepare_linear"), ids=str)
def test_small_groups_too_are_exact_when_each_has_its_product(case, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SLAB", 0)
    call = case.make(CPU)
    assert call.error(prepare_linear(*call.arguments)) <= case.tolerance


@pytest.mark.parametrize("case", [c for c in load_cases("prepare_linear") if c.name.endswith("float32")], ids=str)
def test_without_fbgemm_every_class_is_a_matrix_in_fp32(case, monkeypatch):
    monkeypatch.setattr(module, "has_half", lambda: False)
    call = case.make(CPU)
    prepared = prepare_linear(*call.arguments)
    assert type(prepared) in (DenseLinear, HeldLinear)
    assert call.error(prepared) <= case.tolerance


@needs_half
@pytest.mark.parametrize("name", WEIGHTS)
def test_what_holds_each_class(name, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SLAB", 0)
    prepared = prepare_linear(WEIGHTS[name](256, 256), None, FP32)
    assert type(prepared) is HELD[name]
    if type(prepared) is HalfLinear:
        assert prepared.packed_bytes == 2 * 256 * 256


def test_groups_too_small_for_a_product_each_are_held_in_fp32():
    assert type(prepare_linear(int_group(192, 256), None, FP32)) is HeldLinear
    if module.has_half():
        assert type(prepare_linear(int_group(2048, 256), None, FP32)) is HalfLinear


@pytest.mark.parametrize("scale", [1.0, 2.0**-40, 2.0**60])
def test_numbers_of_16_bits_are_held_exactly_whatever_their_size(scale):
    matrix = draw(64, 64, seed=1, dtype=torch.bfloat16).float() * scale
    slab = exact_half(matrix)
    assert torch.equal(slab.codes_NM.half().float() * (1.0 if slab.scale is None else slab.scale), matrix)
    assert float(slab.codes_NM.abs().max()) < 65504


@pytest.mark.parametrize("what", ["fp32 digits", "a wide range", "inf", "nan"])
def test_numbers_that_half_precision_would_change_are_not_held_in_it(what):
    matrix = draw(64, 64, seed=1, dtype=torch.bfloat16).float()
    matrix[3, 5] = {"fp32 digits": 1 + 2.0**-20, "a wide range": 2.0**-40, "inf": torch.inf, "nan": torch.nan}[what]
    assert exact_half(matrix) is None


def test_zeros_and_numbers_of_fp16_need_no_scale():
    for matrix in (torch.zeros(8, 8), draw(64, 64, seed=1, dtype=torch.float16).float()):
        slab = exact_half(matrix)
        assert slab.scale is None and torch.equal(slab.codes_NM, matrix)


@needs_half
def test_a_weight_is_replaced_by_one_that_fits_and_by_no_other(monkeypatch):
    monkeypatch.setattr(module, "LEAST_SLAB", 0)
    linear = prepare_linear(int_group(64, 256), torch.ones(64), FP32)
    other, x = int_group(64, 256, bits=8, group=64), draw(3, 256, seed=2)
    linear.load(other, torch.zeros(64))
    expected = x.double() @ other.dequantize().double().T
    terms = x.double().abs() @ other.dequantize().double().abs().T
    assert bool(((linear(x) - expected).abs() <= terms * 2.0**-21).all())
    with pytest.raises(ValueError, match="cannot become"):
        linear.load(int_group(64, 128), torch.zeros(64))
    with pytest.raises(ValueError, match="cannot become"):
        linear.load(other, None)
    with pytest.raises(ValueError, match="does not fit"):
        linear.load(Dense(draw(64, 256, seed=3)), torch.zeros(64))


def test_where_memory_is_small_weights_stay_as_they_are_stored():
    ops = bind(CPU, BindFacts(FP32, roomy=False))
    assert ops.backends["prepare_linear"] == ops.backends["prepare_experts"] == "reference"
    assert type(ops.primitives.prepare_linear(int_group(1024, 256), None, FP32)) is DequantLinear
    assert bind(CPU, BindFacts(FP32)).backends["prepare_linear"] == "cpu"
