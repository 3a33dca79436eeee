"""The scripts of a GPU session, as far as a CPU can run them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tokenmill.models.tiny import make_tiny

ROOT = Path(__file__).parents[2]


def warm(*arguments: str) -> tuple[int, list[str]]:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_warm.py"), *arguments, "--context", "128", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout.splitlines()


def test_kernels_are_warmed_bucket_by_bucket(tmp_path):
    code, lines = warm(str(make_tiny("llama", tmp_path / "tiny")), "--rows", "2")
    assert code == 0 and "1 starts" in lines[-1] and "0 failed" in lines[-1]
    assert lines[0].startswith("tiny auto 2: {") and '"weights"' in lines[0]


def test_a_start_that_fails_is_a_line(tmp_path):
    code, lines = warm(str(tmp_path / "missing"), "--rows", "2")
    assert code == 1 and "1 failed" in lines[-1] and "missing" in lines[0]


def test_a_case_that_breaks_its_process_is_not_every_later_ones(tmp_path, monkeypatch):
    """One case dies without a word, one leaves the context broken; the rest are run by the processes behind."""
    from scripts import gpu_kernels

    monkeypatch.setattr(gpu_kernels, "BACKENDS", ("reference",))
    args = argparse.Namespace(out=tmp_path, shard=3, limit_s=60.0)
    ends = iter(["dies", "breaks"])

    def one_case(op, backend, case):
        how = next(ends, "")
        if how == "dies":
            raise SystemExit(139)
        return "AcceleratorError: illegal address" if how == "breaks" else 0.5

    monkeypatch.setattr(gpu_kernels, "one_case", one_case)
    monkeypatch.setattr(gpu_kernels, "broken", lambda: True)
    codes = []
    for _ in range(3):
        try:
            gpu_kernels.some_cases(args)
            codes.append(0)
        except SystemExit as end:
            codes.append(end.code)
    assert codes == [139, 1, 0]
    gpu_kernels.merge(tmp_path)
    gpu_kernels.summary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cases.json"]
    found = [line["error"] for line in json.loads((tmp_path / "cases.json").read_text())]
    assert found[:2] == ["did not return", "AcceleratorError: illegal address"] and len(found) > 5
    assert set(found[2:]) == {0.5}
