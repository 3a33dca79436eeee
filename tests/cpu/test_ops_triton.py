"""The Triton backend on the CPU, in Triton's interpreter: the same cases as every backend, where they are small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenmill import find
from tokenmill.kernels.case import ops_with_cases

pytest.importorskip("triton", reason="triton is not installed (torch for CPUs does not bring it)")
ROOT = Path(__file__).parents[2]




def interpreted(module: str, *arguments: str) -> dict[str, float]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.support.{module}", *arguments], env=environment, cwd=ROOT, capture_output=True,
        text=True, timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("op", [name for name in find.names("tokenmill.kernels.triton") if name in ops_with_cases()])
def test_an_interpreted_op_is_as_exact_as_its_cases_ask(op):
    errors = interpreted("interpreted", op)
    assert len(errors) >= 4
    assert {name: error for name, error in errors.items() if not error <= 1} == {}


def test_fused_blocks_say_what_the_reference_says():
    """Splits, norms on the way, residuals, SiLU, rope and cache writes at the ends of products, weight by weight."""
    differences = interpreted("fused")
    assert len(differences) >= 8
    assert {name: value for name, value in differences.items() if not value <= 2e-6} == {}


def test_the_kernel_benchmark_runs_and_its_errors_are_small():
    """Its own code at tiny sizes; times mean nothing there. Halves differ from fp32 by their rounding."""
    errors = interpreted("bench_kernels")
    assert len(errors) >= 12
    assert {name: error for name, error in errors.items() if not error <= 2e-3} == {}


def test_whole_models_say_what_the_reference_says():
    """Chunks, then single tokens, in fp32: sums in another order and nothing else."""
    differences = interpreted("whole", "llama", "qwen3")
    assert len(differences) == 4
    assert {name: value for name, value in differences.items() if not value <= 5e-6} == {}


HALF_TYPES = {"fp16": 1024, "bf16": 128}


def compile_for_hopper(kernel, types: dict, constants: dict) -> bytes:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def types(dtype: str, weight: str = "*i16", cache: tuple[str, str] = ("*u8", "*fp16")) -> dict[str, str]:
    """Argument types by name: alike in all kernels."""
    model = dict.fromkeys(("x", "norm", "residual", "out", "q", "q_norm", "k_norm", "qkv", "zeros"), f"*{dtype}")
    singles = ("sums", "scratch", "bias", "squares", "cos", "sin", "logn", "marks", "slopes", "sinks")
    fp32 = dict.fromkeys(singles, "*fp32")
    ints = dict.fromkeys(("counters", "tables", "rows", "positions", "starts", "ends"), "*i32")
    planes = {"k": cache[0], "v": cache[0], "k_params": cache[1], "v_params": cache[1]}
    pointers = {**model, **fp32, **ints, **planes, "w": weight, "scales": "*fp16", "writes": "*i64"}
    sizes = dict.fromkeys(("T", "N", "M", "F", "stride", "num_blocks", "num_rows", "window", "steps", "splits"), "i32")
    return {
        **{f"{name}_ptr": kind for name, kind in pointers.items()}, **sizes,
        **dict.fromkeys(("eps", "q_eps", "k_eps", "scale", "softcap"), "fp32"),
    }  # fmt: skip


def product_constants(kind: int, dtype: str, block_n: int) -> dict[str, object]:
    return {
        "KIND": kind, "SIGN": 1, "ZEROS": kind == 2, "GROUP": 128, "BIAS": HALF_TYPES[dtype], "NORM": True, "PARTS": 64,
        "BLOCK_P": 64, "EVEN": True, "FOLD": False, "ASM": True, "EARLY": 8, "SPLITS": 4, "BLOCK_N": block_n,
        "BLOCK_T": 8, "BLOCK_K": 128, "HAS_BIAS": True,
    }  # fmt: skip


# What the interpreter forgives, the compiler may not.


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize(("kind", "weight"), [(0, ""), (1, "*u8"), (2, "*i16")])
def test_products_compile_for_hopper_without_a_gpu(kind, weight, dtype):
    from tokenmill.kernels.triton import _launch

    given, constants = types(dtype, weight or f"*{dtype}"), product_constants(kind, dtype, 64)
    assert compile_for_hopper(_launch._linear, given, {**constants, "RESIDUAL": True})
    assert compile_for_hopper(_launch._gated, given, constants)


@pytest.mark.parametrize("cache", [0, 1, 2, 3])
def test_attention_and_its_start_compile_for_hopper_without_a_gpu(cache):
    from tokenmill.kernels.triton import attention, attn_in

    given = types("fp16", cache=("*fp16", "*fp16") if cache == 0 else ("*u8", "*fp16"))
    heads = {"H": 32, "G": 8, "HALF": 64, "CACHE": cache, "ROTATE": cache == 2}
    heads |= dict.fromkeys(("Q_NORM", "K_NORM", "LOGN"), cache == 0)
    assert compile_for_hopper(attn_in._project, given, {**product_constants(2, "fp16", 128), **heads})
    assert compile_for_hopper(attn_in._finish, given, {**heads, "BLOCK_H": 64, "BLOCK_T": 16})
    sizes = {"G": 8, "GROUP": 4, "K": 128, "S": 64, "KIND": cache, "ROTATE": cache == 2, "MIXED": True}
    sizes |= dict.fromkeys(("WINDOW", "SOFTCAP", "ALIBI", "SINKS"), cache == 0)
    blocks = {"ASM": True, "EARLY": True, "BLOCK_G": 4, "BLOCK_H": 64, "BLOCK_L": 64}
    single = {"CHUNKS": False, "AHEAD": False, "SPLIT": True, "TOKENS": 1, "BLOCK_Q": 16}
    chunk = {"CHUNKS": True, "AHEAD": cache < 2, "SPLIT": False, "TOKENS": 16, "BLOCK_Q": 64}
    assert compile_for_hopper(attention._attend, given, {**sizes, **blocks, **single})
    assert compile_for_hopper(attention._attend, given, {**sizes, **blocks, **chunk})


def test_sampling_compiles_for_hopper_without_a_gpu():
    from tokenmill.kernels.triton import cutoffs, mask_rows, penalise

    tables = {"places_ptr": "*i64", "seen_ptr": "*u8", "counts_ptr": "*i16", "factors_ptr": "*fp32", "bits_ptr": "*u8"}
    lists = {"top_k_ptr": "*i32", "top_p_ptr": "*fp32", "min_p_ptr": "*fp32", "cut_ptr": "*fp32", "rows_ptr": "*i64"}
    given = {"x_ptr": "*fp32", **dict.fromkeys(("V", "B", "stride"), "i32"), **tables, **lists}
    for kernel in (cutoffs._cutoffs, mask_rows._mask_rows, penalise._penalise):
        assert compile_for_hopper(kernel, given, {"BLOCK_V": 2048})
