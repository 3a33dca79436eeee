"""Who may ask. Keys are held as SHA-256 digests only; every check compares against all of them, without early exit."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from tokenmill.errors import RequestError
from tokenmill.serve.http.errors import error_response

OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/version"})
PAGES = frozenset({"/", "/docs", "/redoc", "/ui"})


class KeyRing:
    """The configured keys. Empty: everybody may ask."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, given: bytes) -> bool:
        digest = _digest(given)
        matches = 0
        for known in self._digests:
            matches |= hmac.compare_digest(digest, known)
        return bool(matches)


class AuthLayer:
    """Refuses every path but OPEN_PATHS without a key: `Authorization: Bearer KEY` or `x-api-key: KEY`.

    Browsers cannot send those when they open a page, so the pages ask for a password, which is the key. That a browser
    then sends it with other sites' requests too does no harm: ours need a JSON content type, which those may not set.

    Decides on the decoded path exactly as the router will see it; anything that is not literally an open path needs a
    key, whatever its case, slashes or escapes.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.keys or scope["path"] in OPEN_PATHS or self.keys.accepts(_given(scope)):
            await self.app(scope, receive, send)
            return
        error = RequestError("Unauthorized.", 401, code="invalid_api_key")
        scheme = 'Basic realm="tokenmill: any name, and an API key as password"' if scope["path"] in PAGES else "Bearer"
        await error_response(error, {"WWW-Authenticate": scheme, "Connection": "close"})(scope, receive, send)


def _given(scope: Scope) -> bytes:
    headers = dict(reversed(scope["headers"]))
    kind, _, value = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return bytes(value.strip())
    if kind.lower() == b"basic":
        return _password(value.strip())
    return bytes(headers.get(b"x-api-key", b""))


def _password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
