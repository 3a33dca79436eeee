"""The kernel benchmark's own code on the CPU: tiny sizes, Triton interpreted, one call instead of a timed graph.

Prints the error of every line it would print on a GPU.
"""

from __future__ import annotations

import json

import torch

from tokenmill.bench import kernels
from tokenmill.bench.ceilings import Ceilings
from tokenmill.kernels.ops import Heads


def once(calls, replays=1):
    calls[0]()
    return 1.0


def main() -> None:
    kernels.DEVICE, kernels.graph_us, kernels.LAYERS = torch.device("cpu"), once, 2
    kernels.D, kernels.HEADS, kernels.BLOCK_TOKENS = 256, Heads(2, 1, 128), 16
    kernels.SHAPES = {"qkv": (512, 256), "o": (256, 256), "gate_up": (512, 256), "down": (256, 256)}
    kernels.copies = lambda nbytes: 1
    ceilings = Ceilings(4e12, 4e12, 8e14)
    timings = [kernels.product_timing(kind, "o", 3, ceilings) for kind in ("w4", "fp8", "int8", "fp16")]
    timings += [kernels.tuned("w4", "o", 2, ceilings)[0], kernels.tuned("fp16", "o", 40, ceilings)[0]]
    timings += [kernels.attention_timing(kv, [70, 70], [1, 1], ceilings) for kv in ("auto", "int8", "int4", "fp8")]
    timings += [kernels.attention_timing("auto", [50], [20], ceilings)]
    timings += [kernels.layer_timing(kernels.Step("w4", "auto", 2, 40), ceilings)]
    kernels.VOCAB = 300
    timings += [kernels.cutoffs_timing(2, ceilings)]
    failed = [t.notes["failed"] for t in timings if "failed" in t.notes]
    assert not failed, failed
    assert all(len(t.cells()) == len(kernels.HEADERS) and t.record()["share"] > 0 for t in timings)
    print(json.dumps({f"{t.what} {t.shape}": t.error for t in timings}))


if __name__ == "__main__":
    main()
