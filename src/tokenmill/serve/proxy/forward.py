"""One request handed on to a node, and its answer handed back as it comes.

A node that cannot be reached, or that takes no work now (429, 503), is passed over for another one as long as nothing
was sent back; one lost in the middle of an answer ends it with an error event. A client that leaves ends the node's
work, since its connection is closed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokenmill.errors import RequestError
from tokenmill.serve.anthropic.answer import FRAMING as ANTHROPIC
from tokenmill.serve.http.body import check_content_type, decode, read_all
from tokenmill.serve.http.disconnect import unless_gone
from tokenmill.serve.http.errors import ANTHROPIC_PATHS
from tokenmill.serve.http.sse import OPENAI, EventStream, Framing
from tokenmill.serve.proxy.nodes import Node, Nodes

BUSY = (429, 503)
# What of a client's headers goes on; keys do, as nodes check them too.
_PASSED = ("authorization", "x-api-key", "anthropic-version", "anthropic-beta", "content-type", "x-request-timeout")
_RETURNED = ("content-type", "retry-after", "www-authenticate")


@dataclass(slots=True)
class Lease:
    """A request under way at a node. Closing it, once or more, ends it there."""

    node: Node
    response: httpx.Response
    started_s: float
    open: bool = True

    async def close(self) -> None:
        if self.open:
            self.open = False
            self.node.unfinished -= 1
            self.node.latencies_s.append(time.monotonic() - self.started_s)
            await self.response.aclose()


class Forwarder:
    """Sends requests to nodes through one pool of connections. `timeout_s` bounds each wait for a node's bytes."""

    def __init__(self, nodes: Nodes, client: httpx.AsyncClient) -> None:
        self._nodes = nodes
        self._client = client

    async def forward(self, request: Request) -> Response:
        """The node's answer, whatever its status."""
        check_content_type(request.headers.get("content-type", ""))
        raw = await read_all(request.receive)
        model = decode(raw).get("model")
        lease = await unless_gone(request.receive, self._open(request, raw, model if isinstance(model, str) else None))
        kind = lease.response.headers.get("content-type", "")
        if lease.response.status_code == 200 and kind.startswith("text/event-stream"):
            return NodeStream(lease, self._nodes, _framing(request.url.path, kind))
        try:
            body = await unless_gone(request.receive, self._whole(lease))
        finally:
            await lease.close()
        return Response(body, lease.response.status_code, _kept(lease.response.headers, _RETURNED))

    async def _open(self, request: Request, raw: bytes, model: str | None) -> Lease:
        """A node's answer up to its headers, of the first node that takes the request."""
        tried: list[str] = []
        busy: RequestError | None = None
        while True:
            try:
                node = self._nodes.pick(model, tried)
            except RequestError as error:
                raise (busy or error) from None
            tried.append(node.url)
            lease = await self._send(node, request, raw)
            if lease is not None and lease.response.status_code not in BUSY:
                return lease
            if lease is not None:
                busy = RequestError("every server behind this proxy is busy; try again later",
                                    lease.response.status_code, code="busy")  # fmt: skip
                await lease.close()

    async def _send(self, node: Node, request: Request, raw: bytes) -> Lease | None:
        """None: the node cannot be reached, or was lost before it answered."""
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        sent = self._client.build_request(
            "POST", node.url + path, content=raw, headers=_kept(request.headers, _PASSED)
        )
        node.unfinished += 1
        started_s = time.monotonic()
        try:
            return Lease(node, await self._client.send(sent, stream=True), started_s)
        except BaseException as error:
            node.unfinished -= 1
            if isinstance(error, httpx.ReadTimeout):
                raise RequestError("the server behind this proxy did not answer in time", 504, code="timeout") from None
            if not isinstance(error, httpx.TransportError):
                raise
        self._nodes.lost(node)
        return None

    async def _whole(self, lease: Lease) -> bytes:
        try:
            return await lease.response.aread()
        except httpx.TransportError:
            self._nodes.lost(lease.node)
            raise _lost() from None


class NodeStream(EventStream):
    """A node's stream, byte for byte."""

    def __init__(self, lease: Lease, nodes: Nodes, framing: Framing) -> None:
        super().__init__(_pieces(lease, nodes), None, framing)
        self._lease = lease

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._lease.close()


async def _pieces(lease: Lease, nodes: Nodes) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in lease.response.aiter_bytes():
            yield piece
    except httpx.TransportError:
        nodes.lost(lease.node)
        raise _lost() from None


def _framing(path: str, media_type: str) -> Framing:
    """The node has written the end mark itself, but for an answer that broke off."""
    usual = ANTHROPIC if path.startswith(ANTHROPIC_PATHS) else OPENAI
    return Framing(lambda error: usual.failure(error) + usual.end, b"", media_type)


def _kept(headers: Any, names: tuple[str, ...]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}


def _lost() -> RequestError:
    return RequestError("the server behind this proxy was lost", 503, code="node_lost")
