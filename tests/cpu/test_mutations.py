"""The scheduler's tests catch planted bugs: scripts/mutations.py, whole (about 20 s of one core)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_planted_bugs_are_caught() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/mutations.py"], cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
