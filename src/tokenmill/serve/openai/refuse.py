"""How a field is refused."""

from __future__ import annotations

from tokenmill.errors import RequestError


def refuse(message: str, param: str) -> RequestError:
    return RequestError(message, 400, param=param, code="invalid_value")
