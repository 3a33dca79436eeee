"""Parity with the transformers that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.errors import ConfigError
from tokenmill.models.parity import ParityReport, Probe, check_parity


def parity(folder: Path, tokens: int) -> ParityReport:
    """The report; skips where that transformers is too old to have the family."""
    try:
        return check_parity(folder, Probe(tokens=tokens))
    except ConfigError as error:
        if "knows no" not in str(error):
            raise
        pytest.skip(str(error))
