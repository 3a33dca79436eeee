"""Bounds on what arrives: header block, body size and body speed. A pure ASGI layer.

The h11 connection bounds a header block that arrives in pieces (protocol.py); this layer bounds what came whole, and
counts body bytes whether or not a Content-Length was given.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmill.errors import RequestError
from tokenmill.serve.http.errors import error_response
from tokenmill.serve.http.options import MIB, TransportLimits


class TransportLayer:
    """Refuses oversized or ambiguous headers at once, and hands the app a receive that counts."""

    def __init__(self, app: ASGIApp, limits: TransportLimits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            check_headers(scope["headers"], self.limits)
        except RequestError as error:
            await error_response(error, {"Connection": "close"})(scope, receive, send)
            return
        await self.app(scope, BoundedReceive(receive, self.limits), send)


def check_headers(headers: list[tuple[bytes, bytes]], limits: TransportLimits) -> None:
    """Raises RequestError (400, 413, 431) where a request's headers alone refuse it."""
    if len(headers) > limits.headers:
        raise RequestError(f"{len(headers)} header fields; at most {limits.headers} are accepted", 431)
    size = sum(len(name) + len(value) + 4 for name, value in headers)
    if size > limits.header_bytes:
        raise RequestError(f"header block of {size} bytes; at most {limits.header_bytes} are accepted", 431)
    lengths = [value for name, value in headers if name == b"content-length"]
    if lengths and any(name == b"transfer-encoding" for name, _ in headers):
        raise RequestError("Content-Length and Transfer-Encoding in one request", 400)
    if lengths and lengths[0].isdigit() and int(lengths[0]) > limits.body_bytes:
        raise too_large(limits)


def too_large(limits: TransportLimits) -> RequestError:
    limit = f"{limits.body_bytes // MIB} MiB" if limits.body_bytes >= MIB else f"{limits.body_bytes} bytes"
    return RequestError(f"request body larger than {limit} (--max-body-mib)", 413, code="body_too_large")


class BoundedReceive:
    """An ASGI receive that raises RequestError 413 or 408 once a body is too large, silent or too slow."""

    def __init__(self, receive: Receive, limits: TransportLimits) -> None:
        self.receive = receive
        self.limits = limits
        self.started_s = time.monotonic()
        self.num_bytes = 0
        self.complete = False

    async def __call__(self) -> Message:
        if self.complete:
            return await self.receive()
        try:
            async with asyncio.timeout(self.limits.body_idle_s):
                message = await self.receive()
        except TimeoutError:
            raise RequestError(f"no body data for {self.limits.body_idle_s:g} s", 408, code="body_timeout") from None
        self._count(message)
        return message

    def _count(self, message: Message) -> None:
        if message["type"] != "http.request":
            self.complete = True
            return
        self.num_bytes += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        if self.num_bytes > self.limits.body_bytes:
            raise too_large(self.limits)
        elapsed_s = time.monotonic() - self.started_s
        if elapsed_s > self.limits.body_grace_s and self.num_bytes < elapsed_s * self.limits.body_min_bytes_per_s:
            raise RequestError(
                f"body slower than {self.limits.body_min_bytes_per_s} bytes/s", 408, code="body_timeout"
            )
