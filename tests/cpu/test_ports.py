"""Ports for servers that are about to be started."""

from __future__ import annotations

import socket

import pytest

from tokenmill.api import ports
from tokenmill.errors import ConfigError


def test_ports_are_below_those_that_kernels_give_out_and_differ() -> None:
    found = [ports.free_port() for _ in range(20)]
    assert all(24_000 <= port < 32_000 for port in found) and len(set(found)) > 10


def test_a_port_that_somebody_holds_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        held = holder.getsockname()[1]
        monkeypatch.setattr(ports, "TRIES", 1)
        monkeypatch.setattr(ports, "RANGE", range(held, held + 1))
        with pytest.raises(ConfigError, match=f"no free port among 1 from {held} to {held}; name one"):
            ports.free_port()
