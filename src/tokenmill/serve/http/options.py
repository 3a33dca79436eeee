"""What the HTTP server may be told. Plain data; `check` raises ConfigError that names the flag and the fix."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from tokenmill.errors import ConfigError

MIB = 1 << 20
ADMIN_ROUTES = ("abort_request", "terminate", "sleep", "wakeup", "is_sleeping")


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds on what one connection may cost. Times in seconds.

    `header_bytes` and `headers` bound a request's header block; a header not complete in `header_s`, a body silent for
    `body_idle_s`, or one slower than `body_min_bytes_per_s` once `body_grace_s` have passed, ends the connection.
    A response whose reader takes nothing for `write_stall_s` is given up; a silent stream gets a comment each `ping_s`.
    """

    header_bytes: int = 64 * 1024
    headers: int = 100
    header_s: float = 10.0
    body_bytes: int = 32 * MIB
    body_idle_s: float = 30.0
    body_grace_s: float = 30.0
    body_min_bytes_per_s: int = 1024
    write_buffer_bytes: int = 64 * 1024
    write_stall_s: float = 30.0
    ping_s: float = 15.0


@dataclass(frozen=True, slots=True)
class CorsOptions:
    """Cross-origin access, off while `origins` is empty."""

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """One API server.

    `max_concurrent_requests` requests run at once and later ones wait; None leaves that to the engine. `max_queue` is
    how many may wait before 429. Both count choices: a request with n=4 takes four places. `tls` is (key, certificate).
    `admin_socket` is a path for the routes that steer the server; `admin_routes` names those of them that the public
    port has too, which needs keys. A server whose engine is dead for `dead_engine_s`, or does not answer for
    `silent_engine_s`, ends with an error, so that whatever keeps it running starts it anew.
    `proxy_url` is the proxy (serve/proxy) that is told of this server.
    """

    host: str = "0.0.0.0"
    port: int = 23333
    api_keys: tuple[str, ...] = ()
    cors: CorsOptions = CorsOptions()
    tls: tuple[str, str] | None = None
    max_concurrent_requests: int | None = None
    max_queue: int = 1024
    max_n: int = 16
    drain_timeout_s: float = 60.0
    request_timeout_s: float | None = None
    dead_engine_s: float = 5.0
    silent_engine_s: float = 30.0
    admin_socket: str | None = None
    admin_routes: frozenset[str] = frozenset()
    proxy_url: str | None = None
    docs: bool = True
    metrics: bool = True
    log_level: str = "info"
    keep_alive_s: int = 5
    limits: TransportLimits = field(default_factory=TransportLimits)

    @property
    def loopback(self) -> bool:
        """True where only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def check(options: ServerOptions) -> ServerOptions:
    """The same object where it can be served."""
    if options.cors.credentials and "*" in options.cors.origins:
        raise ConfigError("--allow-credentials cannot go with --allow-origins '*'; name the origins that may send them")
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--server-port is {options.port}; it must be 0 to 65535 (0: any free port)")
    if options.max_concurrent_requests is not None and options.max_concurrent_requests < 1:
        raise ConfigError(f"--max-concurrent-requests is {options.max_concurrent_requests}; it must be at least 1")
    for flag, value in (("--max-queue", options.max_queue), ("--drain-timeout", options.drain_timeout_s)):
        if value < 0:
            raise ConfigError(f"{flag} is {value}; it must not be negative")
    if options.max_n < 1 or options.limits.body_bytes < 1:
        raise ConfigError(f"--max-n ({options.max_n}) and --max-body-mib must be at least 1")
    if options.admin_routes and not options.api_keys:
        raise ConfigError("admin routes on the public port need --api-keys; --admin-socket PATH needs none")
    if any(not key.strip() for key in options.api_keys):
        raise ConfigError("--api-keys holds an empty key; every key needs at least one character")
    return options
