"""What a proxy may be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.serve.http.options import TransportLimits


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """`nodes` are servers known from the start, whose models are asked for as soon as they answer. `timeout_s` bounds a
    wait for a node's next bytes (None: none). `kept_nodes` is a file in which addresses of nodes outlive the proxy.
    """

    host: str = "0.0.0.0"
    port: int = 8000
    nodes: tuple[str, ...] = ()
    strategy: str = "min_expected_latency"
    api_keys: tuple[str, ...] = ()
    tls: tuple[str, str] | None = None
    timeout_s: float | None = None
    check_s: float = 5.0
    forget_s: float = 90.0
    drain_timeout_s: float = 60.0
    kept_nodes: Path | None = None
    log_level: str = "warning"
    keep_alive_s: int = 5
    limits: TransportLimits = field(default_factory=TransportLimits)
