"""Thousands of random workloads against the scheduler; tests/support/workloads.py says which properties are checked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.support.workloads import run_many

ROOT = Path(__file__).parents[2]
WORKLOADS = 5000


def test_random_workloads() -> None:
    """Half of them in a second process: the machines this runs on have two cores."""
    command = [sys.executable, "-m", "tests.support.workloads", str(WORKLOADS // 2), str(WORKLOADS)]
    with subprocess.Popen(
        command, cwd=ROOT, env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}, stdout=subprocess.PIPE, text=True
    ) as other:
        totals = run_many(range(WORKLOADS // 2))
        told, _ = other.communicate()
    assert other.returncode == 0, "the second half failed; its traceback is above"
    totals.update(json.loads(told))
    check_totals(totals)


def check_totals(totals: Counter[str]) -> None:
    """The workloads do reach what they are meant to reach."""
    assert totals["workloads"] == WORKLOADS
    for reached, least in (
        ("length", 5000), ("stop", 1000), ("error", 500), ("abort", 500), ("timeout", 300), ("refused", 10),
        ("preemptions", 800), ("cached_tokens", 3000), ("output_tokens", 50_000),
        ("encoded", 2000), ("encoded_again", 100),
    ):
        assert totals[reached] >= least, f"{reached}: {totals[reached]}"
