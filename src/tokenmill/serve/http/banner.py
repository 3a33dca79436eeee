"""What the server says when it starts."""

from __future__ import annotations

from tokenmill.serve.http.options import ServerOptions

_RED = "\x1b[1;31m{}\x1b[0m"


def banner(options: ServerOptions, port: int, color: bool) -> list[str]:
    """The three hint lines people and scripts look for, and whether keys are asked for."""
    scheme = "https" if options.tls else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    lines = [f"HINT:    Open {scheme}://{host}:{port} in a browser for the API description."] * 3
    if options.api_keys:
        return [*lines, f"auth: ON ({len(options.api_keys)} key{'s' if len(options.api_keys) > 1 else ''})"]
    if options.loopback:
        return [*lines, "auth: OFF (this machine only)"]
    warning = f"auth: OFF - whoever reaches {host}:{port} may use this model; set TOKENMILL_API_KEYS or --api-keys"
    return [*lines, _RED.format(warning) if color else warning]
