#!/usr/bin/env python3
"""Compiles the kernels that a checkpoint will ask for, side by side, before anything is timed.

    TOKENMILL_KERNELS=triton python3 scripts/gpu_warm.py /dev/shm/small-w4 [--kv auto int8] [--limit-s 120]

Triton compiles a kernel when it is first launched, one after the other and some seconds each, and keeps what it
compiled on disk. Here every process starts an engine's runner with one decode bucket of its own, which captures and
rehearses; a start that follows finds all of it. Few layers do: kernels know nothing of their number.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
# One bucket for each way in which decode steps are cut.
ROWS = (1, 16, 32, 64, 128, 256)
CONTEXT, BLOCKS = 4096, 320


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--kv", nargs="+", default=["auto"], help="cache kinds")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help="decode buckets, a process each")
    parser.add_argument("--context", type=int, default=CONTEXT, help="most tokens of a sequence")
    parser.add_argument("--limit-s", type=float, default=120.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(start(asked)))
        return 0
    return side_by_side(asked)


def start(asked: argparse.Namespace) -> dict[str, float]:
    """One runner with one bucket; seconds of each phase of its start."""
    from tokenmill.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, SchedulerConfig
    from tokenmill.runner.runner import make_runner

    runner = make_runner(EngineConfig(
        ModelConfig(str(asked.folders[0]), max_model_tokens=asked.context),
        CacheConfig(asked.kv[0], num_blocks=BLOCKS, block_tokens=64), SchedulerConfig(max(*asked.rows, 2)),
        kernels=KernelConfig(asked.device, capture_rows=tuple(asked.rows)),
    ))
    phases: dict[str, float] = runner.control("describe")["phases_s"]
    runner.close()
    return phases


def side_by_side(asked: argparse.Namespace) -> int:
    """1 where a process failed or was stopped."""
    begun = time.monotonic()
    children = {}
    for folder in asked.folders:
        for kv in asked.kv:
            for rows in asked.rows:
                command = [sys.executable, __file__, str(folder), "--kv", kv, "--rows", str(rows), "--child"]
                command += ["--context", str(asked.context), "--device", asked.device]
                children[f"{folder.name} {kv} {rows}"] = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
    failed = 0
    for name, child in children.items():
        try:
            said = child.communicate(timeout=max(1.0, begun + asked.limit_s - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            child.kill()
            said = f"stopped after {asked.limit_s:.0f} s"
        failed += child.wait() != 0
        print(f"{name}: {said.strip().splitlines()[-1] if said.strip() else 'said nothing'}"[:300], flush=True)
    print(f"{len(children)} starts in {time.monotonic() - begun:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
