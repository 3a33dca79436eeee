"""Rules for all tests: nothing of the machine they run on changes what they find.

One thread, no hub, no proxy before this machine's own addresses, no terminal's width, nothing of the user's caches and
settings; Hypothesis draws the same examples in every run (`pytest --hypothesis-profile explore`: others each time).
GPU tests are skipped with a reason where there is no GPU.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("NO_PROXY", "no_proxy"):
    os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
KEPT = ("TOKENMILL_SCREENSHOT", "TOKENMILL_KERNELS")
for name in set(os.environ) - set(KEPT):
    if name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR") or name.startswith(("TOKENMILL_", "LMDEPLOY_", "TM_")):
        del os.environ[name]

# Time of a busy machine is no fault of a strategy, and a database of failures would make runs differ.
settings.register_profile(
    "house", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("house"), derandomize=False, print_blob=True)
settings.load_profile("house")

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def own_caches() -> Iterator[None]:
    """A folder of this session in place of the home's, which may be missing, read-only or full of surprises."""
    folder = tempfile.mkdtemp(prefix="tokenmill-tests-")
    os.environ["TOKENMILL_CACHE"] = folder
    try:
        (Path.home() / ".triton").mkdir(exist_ok=True)
    except (OSError, RuntimeError):
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/triton"
    yield
    shutil.rmtree(folder, ignore_errors=True)


def _why_no_gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return None if torch.cuda.is_available() else "no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what lies under tests/gpu where it cannot run."""
    gpu = [item for item in items if HERE / "gpu" in item.path.parents]
    reason = _why_no_gpu() if gpu else None
    if reason:
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason=reason))
