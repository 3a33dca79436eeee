"""Parity with the transformers that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tokenmill.errors import ConfigError
from tokenmill.models import parity as parity_of
from tokenmill.models.parity import ParityReport, Probe, check_parity
from tokenmill.models.tiny import make_tiny


def parity(folder: Path, tokens: int) -> ParityReport:
    """The report; skips where that transformers is too old to have the family."""
    try:
        return check_parity(folder, Probe(tokens=tokens))
    except ConfigError as error:
        if "knows no" not in str(error):
            raise
        pytest.skip(str(error))


def difference_of_spoilt(family: str, tensor: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The first stage that differs where one tensor of the tower, by the end of its name, is 5 % larger than theirs."""
    sound, spoilt = make_tiny(family, place / "a"), make_tiny(family, place / "b")
    tensors = load_file(spoilt / "model.safetensors")
    [full] = [key for key in tensors if key.endswith(tensor) and "language_model" not in key]
    tensors[full] = tensors[full] * 1.05
    save_file(tensors, spoilt / "model.safetensors", {"format": "pt"})
    build = parity_of.build_model
    monkeypatch.setattr(parity_of, "build_model", lambda folder, how: build(spoilt, how))
    return check_parity(sound, Probe(tokens=20)).first_difference
