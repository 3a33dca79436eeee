"""Pure tests run without torch: asserted at the end of a run of nothing else (scripts/check runs them alone)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def no_torch(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if all(HERE in item.path.parents for item in request.session.items):
        assert "torch" not in sys.modules, "a pure test imported torch"
