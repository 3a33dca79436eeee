"""The scripts of a GPU session, as far as a CPU can run them."""

from __future__ import annotations

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
