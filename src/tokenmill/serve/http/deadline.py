"""How long a request may take: its `X-Request-Timeout` (seconds), never longer than the server's --request-timeout."""

from __future__ import annotations

import math

from starlette.requests import Request

from tokenmill.errors import RequestError
from tokenmill.serve.http.options import ServerOptions

HEADER = "x-request-timeout"


def timeout_of(request: Request, options: ServerOptions) -> float | None:
    given = request.headers.get(HEADER)
    if given is None:
        return options.request_timeout_s
    try:
        timeout_s = float(given)
    except ValueError:
        timeout_s = math.nan
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise RequestError("X-Request-Timeout must be a positive number of seconds", 400, param=HEADER)
    return timeout_s if options.request_timeout_s is None else min(timeout_s, options.request_timeout_s)
