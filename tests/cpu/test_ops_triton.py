"""The Triton backend on the CPU, in Triton's interpreter: the same cases as every backend, where they are small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenmill import find

pytest.importorskip("triton", reason="triton is not installed (torch for CPUs does not bring it)")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("op", find.names("tokenmill.kernels.triton"))
def test_an_interpreted_op_is_as_exact_as_its_cases_ask(op):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.interpreted", op], env=environment, cwd=ROOT, capture_output=True,
        text=True, timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout)
    assert len(errors) >= 4
    assert {name: error for name, error in errors.items() if not error <= 1} == {}


def compile_for_hopper(kernel, types: dict, constants: dict) -> bytes:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_fused_kernels_compile_for_hopper_without_a_gpu(kind):
    """What the interpreter forgives, the compiler may not."""
    from tokenmill.kernels.triton import attention, attn_in

    values, params = ("*bf16", "*bf16") if kind == 0 else ("*u8", "*fp16")
    cache = {"k_ptr": values, "k_params_ptr": params, "v_ptr": values, "v_params_ptr": params}
    tables = dict.fromkeys(("tables_ptr", "rows_ptr", "positions_ptr"), "*i32")
    sums = {"sums_ptr": "*fp32", "marks_ptr": "*fp32", "scale": "fp32", "num_blocks": "i32"}
    sizes = {"G": 8, "GROUP": 4, "K": 128, "S": 64, "KIND": kind, "SPLITS": 4}
    blocks = {"BLOCK_Q": 16, "BLOCK_K": 128, "BLOCK_L": 64}
    assert compile_for_hopper(attention._attend, {"q_ptr": "*bf16", **cache, **tables, **sums}, {**sizes, **blocks})
    angles = {"cos_ptr": "*fp32", "sin_ptr": "*fp32", "writes_ptr": "*i64"}
    sizes = {"H": 32, "G": 8, "HALF": 64, "KIND": kind, "BLOCK_K": 64}
    assert compile_for_hopper(attn_in._turn_and_store, {"qkv_ptr": "*bf16", "q_ptr": "*bf16", **angles, **cache}, sizes)
