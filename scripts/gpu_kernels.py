#!/usr/bin/env python3
"""Every kernel on a GPU, in one command of about five minutes: right first, then how fast. Nothing stops it.

    PYTHONPATH=src python3 scripts/gpu_kernels.py [--out FOLDER] [--parts ...] [--limit-s 280]

    facts      the GPU, versions, and its ceilings measured now
    cases      every op x backend x case, sharded over processes: which fail, and the worst of each op
    models     whole tiny models in fp32, every block fused that can be, against the same with plain torch
    warm       compiles what the parts behind it will time, sharded over processes
    layers     a whole decode layer, W4 and fp16, against its floor; plain torch beside it
    products   linears as bound, beside torch's fp16 product
    attention  decode and prompts, every cache kind; torch's attention beside it
    tiles      every cut of the W4 and fp16 products, the fastest printed

Every part runs in processes of its own with a time limit, so that a crash or a hang of one is a line. FOLDER gets
kernels.jsonl (all lines, as they come), cases.json and cuts.json (the fastest cut of each product).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
LIMITS = {
    "facts": 40, "cases": 110, "models": 60, "warm": 80, "layers": 70, "products": 60, "attention": 70, "tiles": 110,
}  # fmt: skip
SHARDS = {"cases": 14, "models": 3, "warm": 14}
FAMILIES = ("llama", "qwen3", "baichuan")
BACKENDS = ("reference", "triton")
# Processes a shard of cases may use up, and what is written before a case is run.
MOST_STARTS, BEGUN = 8, "did not return"
# Rows of weights that a kernel is compiled with are no part of it; few of them make the compiling runs quick.
WARM_ROWS = 1024
# Copy and read in bytes/s and bf16 flop/s of an H200, where this run could not measure its own.
OTHER_CEILINGS = (4.3e12, 4.0e12, 7.9e14)
# Of a product in fp16, over its largest number: a cut that is further off is not among the fastest, it is wrong.
MOST_ERROR = 5e-3


def main() -> int:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.child:
        CHILDREN[args.child](args)
        return 0
    end, codes = time.monotonic() + args.limit_s, []
    for part in args.parts:
        left = end - time.monotonic()
        if left < 5:
            print(f"== {part}: not run, {args.limit_s} s were over")
            continue
        codes.append(part_in_children(part, min(LIMITS[part], left), args.out))
        if part == "cases":
            merge(args.out)
    summary(args.out)
    return max(codes, default=0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-kernels")))
    parser.add_argument("--parts", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--limit-s", type=float, default=290.0)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--shard", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def part_in_children(part: str, limit_s: float, out: Path) -> int:
    """Runs a part's shards side by side; 1 where one failed or ran past its limit."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--out", str(out), "--child", part, "--limit-s", str(limit_s * 0.9)]
    shards = [subprocess.Popen([*command, "--shard", str(i)], process_group=0) for i in range(SHARDS.get(part, 1))]
    failed = []
    for i, shard in enumerate(shards):
        try:
            code: int | str = shard.wait(timeout=max(1.0, started + limit_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(shard.pid, signal.SIGKILL)
            code = f"over {limit_s:.0f} s"
        failed += [f"shard {i}: {code}"] if code else []
    print(f"== {part}: {time.monotonic() - started:.0f} s {'; '.join(failed) or 'done'}", flush=True)
    return 1 if failed else 0


# ---------------------------------------------------------------- parts, each in its own process


def facts(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    import torch
    import triton

    from tokenmill.bench import ceilings

    found = ceilings.measure()
    (args.out / "ceilings.json").write_text(json.dumps(asdict(found)))
    print(f"{torch.cuda.get_device_name()} torch {torch.__version__} triton {triton.__version__}: copy "
          f"{found.copy / 1e12:.2f} TB/s, read {found.read / 1e12:.2f} TB/s, bf16 {found.flops / 1e12:.0f} TFLOP/s")


def cases(args: argparse.Namespace) -> None:
    """Runs this shard's cases in a process behind this one, and in a new one where that died: an error that breaks a
    process's GPU context would otherwise be every later case's."""
    results(args).unlink(missing_ok=True)
    end, command = time.monotonic() + args.limit_s, [sys.executable, __file__, "--out", str(args.out)]
    for _ in range(MOST_STARTS):
        left = end - time.monotonic()
        command[4:] = ["--child", "some_cases", "--shard", str(args.shard), "--limit-s", str(left)]
        if left < 5 or not subprocess.run(command, timeout=left + 5, check=False).returncode:
            return


def results(args: argparse.Namespace) -> Path:
    found: Path = args.out / f"cases-{args.shard}.jsonl"
    return found


def some_cases(args: argparse.Namespace) -> None:
    """This shard's cases that no process before has begun, the deadline kept; each is written down when it is there."""
    from tokenmill import find
    from tokenmill.kernels.case import load_cases, ops_with_cases

    tried = [(op, backend, case) for op in ops_with_cases() for backend in BACKENDS
             if op in find.names(f"tokenmill.kernels.{backend}") for case in load_cases(op)]
    known = results(args).read_text().count(BEGUN) if results(args).exists() else 0
    end = time.monotonic() + args.limit_s
    with results(args).open("a") as file:
        for op, backend, case in tried[args.shard :: SHARDS["cases"]][known:]:
            line: dict[str, Any] = {"op": op, "backend": backend, "case": case.name, "error": BEGUN}
            print(json.dumps(line), file=file, flush=True)
            line["error"] = one_case(op, backend, case) if time.monotonic() < end else "not run"
            print(json.dumps(line), file=file, flush=True)
            if isinstance(line["error"], str) and broken():
                sys.exit(1)


def broken() -> bool:
    """Whether this process's GPU context is of no use any more."""
    import torch

    try:
        torch.cuda.synchronize()
        return False
    except Exception:  # noqa: BLE001 -- that is the answer
        return True


def one_case(op: str, backend: str, case: Any) -> float | str:
    """Error over what is allowed; what was raised, where it did not run."""
    import torch

    from tokenmill import find

    try:
        call = case.make(torch.device("cuda"))
        poison()
        returned = getattr(find.load(f"tokenmill.kernels.{backend}", op), op)(*call.arguments)
        error: float = call.error(returned) / case.tolerance
        return error
    except Exception as failure:  # noqa: BLE001 -- whatever a kernel dies of is this case's result
        return f"{type(failure).__name__}: {failure}"[:300]


def models(args: argparse.Namespace) -> None:
    from tests.support import whole

    whole.main([FAMILIES[args.shard]])


def poison() -> None:
    """NaN in what the allocator will hand out next, so that a place nobody wrote shows."""
    import torch

    for size in (1 << 9, 1 << 12, 1 << 16, 1 << 19, 1 << 21, 1 << 24):
        del [torch.full((size,), float("nan"), device="cuda") for _ in range(4)][:]


def warm(args: argparse.Namespace) -> None:
    """One call of each kernel that will be timed: at its real size where that decides how it is cut, else small."""
    from tokenmill.bench import ceilings, kernel_jobs, kernels

    kernels.copies = lambda nbytes: 1
    kernels.graph_us = lambda calls, replays=1: float(calls[0]() is None)
    # The first layer's start is another kernel than the second's.
    kernels.LAYERS = 2
    limits, end = ceilings.Ceilings(1.0, 1.0, 1.0), time.monotonic() + args.limit_s
    for part in TIMED:
        if part == "tiles":
            kernels.SHAPES = {name: (WARM_ROWS, m) for name, (_, m) in kernels.SHAPES.items()}
        for name, job in list(kernel_jobs.jobs(part))[args.shard :: SHARDS["warm"]]:
            if time.monotonic() < end and "torch" not in name:
                try:
                    job(limits)
                except Exception as failure:  # noqa: BLE001 -- its own part will say so again
                    print(f"{name}: {type(failure).__name__}: {failure}"[:200])


def timed(args: argparse.Namespace) -> None:
    from tokenmill.bench import ceilings, kernel_jobs
    from tokenmill.bench.kernels import HEADERS
    from tokenmill.cli.table import table

    known = args.out / "ceilings.json"
    if not known.exists():
        print(f"no ceilings were measured (see `facts`): floors are of another day's, {OTHER_CEILINGS}")
    limits = ceilings.Ceilings(*OTHER_CEILINGS)
    if known.exists():
        limits = ceilings.Ceilings(**json.loads(known.read_text()))
    rows, failures = [], []
    with (args.out / "kernels.jsonl").open("a") as file:
        for name, timings, failure in kernel_jobs.run(args.child, limits, args.limit_s):
            rows += [timing.cells() for timing in timings[:1]]
            failures += [f"{name}: {failure}"] if failure else []
            file.writelines(json.dumps({"part": args.child, **timing.record()}) + "\n" for timing in timings)
            file.flush()
    print(table(HEADERS, rows))
    print("\n".join(failures[:10]), f"... {len(failures)} jobs failed or did not run" if failures else "")


TIMED = ("layers", "products", "attention", "tiles")
CHILDREN = {
    "facts": facts, "cases": cases, "some_cases": some_cases, "models": models, "warm": warm,
    **dict.fromkeys(TIMED, timed),
}  # fmt: skip


# ---------------------------------------------------------------- what it says at the end


def merge(out: Path) -> None:
    """One file of what the shards wrote: few come back from another machine. The last word on a case counts; of one
    that took its process with it, that is that it was begun."""
    parts = sorted(out.glob("cases-*.jsonl"))
    lines = [json.loads(line) for path in parts for line in path.read_text().splitlines()]
    found = {(line["op"], line["backend"], line["case"]): line for line in lines}
    (out / "cases.json").write_text(json.dumps(list(found.values())))
    for path in parts:
        path.unlink()


def summary(out: Path) -> None:
    known = out / "cases.json"
    found = json.loads(known.read_text()) if known.exists() else []
    bad = [line for line in found if not isinstance(line["error"], float) or not line["error"] <= 1]
    print(f"== {len(found)} cases, {len(bad)} not as exact as they must be, or not run")
    for line in bad[:25]:
        print(f"   {line['op']} {line['backend']} {line['case']}: {line['error']}"[:250])
    times = out / "kernels.jsonl"
    if times.exists():
        cuts: dict[str, Any] = {}
        for record in map(json.loads, times.read_text().splitlines()):
            key, right = f"{record['what']} {record['shape']}", record["error"] < MOST_ERROR
            if record["part"] == "tiles" and right and record["us"] <= cuts.get(key, record)["us"]:
                cuts[key] = record
        (out / "cuts.json").write_text(json.dumps(cuts, indent=1))


if __name__ == "__main__":
    sys.exit(main())
