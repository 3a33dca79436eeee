"""What `bench kernels` measures, part by part, and how it is kept going: one job that fails is a line, not the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from tokenmill.bench import kernels
from tokenmill.bench.ceilings import Ceilings
from tokenmill.bench.kernels import Step, Timing

Job = Callable[[Ceilings], list[Timing]]
PARTS = ("layers", "products", "attention", "tiles")
DECODE_TOKENS = (1, 8, 16, 32, 64, 128, 256)
KV_KINDS = ("auto", "int8", "int4", "int4-plain", "fp8")


def jobs(part: str) -> Iterator[tuple[str, Job]]:
    """Name and work of each job, the most telling first."""
    made = {"layers": _layers, "products": _products, "attention": _attention, "tiles": _tiles}[part]
    return made()


def _layers() -> Iterator[tuple[str, Job]]:
    for batch in (1, 16, 64, 256, 8, 32):
        for kind in ("w4", "fp16"):
            for early in (False, True):
                step = Step(kind, "auto", batch, 512, early=early)
                yield f"layer {kind} B{batch} early {early}", _one(kernels.layer_timing, step)
        yield f"layer torch B{batch}", _one(kernels.layer_timing, Step("fp16", "auto", batch, 512, ()))
    for kv, batch in (("int8", 16), ("int4", 16), ("int8", 64), ("int4", 64), ("auto", 64)):
        yield f"layer w4 {kv} 8k", _one(kernels.layer_timing, Step("w4", kv, batch, 8192))
    yield "layer fp8", _one(kernels.layer_timing, Step("fp8", "auto", 16, 512))


def _products() -> Iterator[tuple[str, Job]]:
    for kind, sizes in (("w4", (*DECODE_TOKENS, 512, 2048)), ("fp8", (1, 16, 64)), ("int8", (1, 16, 64))):
        for tokens in sizes:
            for name in kernels.SHAPES:
                yield f"linear {kind} {name} T{tokens}", _one(kernels.product_timing, kind, name, tokens)


def _attention() -> Iterator[tuple[str, Job]]:
    for rows in (1, 64, 256):
        yield f"cutoffs {rows}", _one(kernels.cutoffs_timing, rows)
    for batch, context in ((1, 512), (16, 512), (64, 512), (256, 512), (64, 2048), (1, 8192), (16, 8192), (64, 8192)):
        for kv in KV_KINDS:
            name = f"attention {kv} {batch} x {context}"
            yield name, _one(kernels.attention_timing, kv, [context] * batch, [1] * batch)
    for rows, context, tokens in ((1, 2048, 2048), (1, 8192, 2048), (16, 512, 512), (1, 32768, 512)):
        for kv in ("auto", "int8", "int4"):
            name = f"attention {kv} {rows} x {context} T{tokens}"
            yield name, _one(kernels.attention_timing, kv, [context] * rows, [tokens] * rows)
    # A new prompt beside running rows, and rows of very different lengths.
    yield "attention mixed", _one(kernels.attention_timing, "auto", [600] * 63 + [512], [1] * 63 + [512])
    yield "attention ragged", _one(kernels.attention_timing, "auto", [8192] + [300] * 63, [1] * 64)


def _tiles(shapes: tuple[str, ...] = ("gate_up", "down", "qkv", "o")) -> Iterator[tuple[str, Job]]:
    for tokens in (1, 16, 64, 256, 8, 32, 128):
        for kind in ("w4", "fp16"):
            for name in shapes:
                yield f"tile {kind} {name} T{tokens}", partial(kernels.tuned, kind, name, tokens)


def _one(timing: Callable[..., Timing], *arguments: object) -> Job:
    return lambda ceilings: [timing(*arguments, ceilings)]


def run(part: str, ceilings: Ceilings, limit_s: float) -> Iterator[tuple[str, list[Timing], str]]:
    """Every job's name, lines and failure ("" where it ran); those past the limit are named as not run."""
    end = time.monotonic() + limit_s
    for name, job in jobs(part):
        if time.monotonic() > end:
            yield name, [], f"not run: {limit_s:.0f} s were over"
            continue
        try:
            yield name, job(ceilings), ""
        except Exception as error:  # noqa: BLE001 -- whatever a kernel dies of is this job's result
            yield name, [], f"{type(error).__name__}: {error}"[:200]
