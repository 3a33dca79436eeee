"""Looking after nodes: which are lost, which are back, which models they serve. Addresses kept in a file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tokenmill.errors import RequestError
from tokenmill.log import get_logger
from tokenmill.serve.proxy.nodes import Node, Nodes, node_url
from tokenmill.serve.proxy.options import ProxyOptions

CHECK_TIMEOUT_S = 3.0


class Checker:
    """Asks nodes over HTTP, with a key of the proxy's own where it has one."""

    def __init__(self, nodes: Nodes, client: httpx.AsyncClient, options: ProxyOptions) -> None:
        self._nodes = nodes
        self._client = client
        self._options = options
        self.headers = {"Authorization": f"Bearer {options.api_keys[0]}"} if options.api_keys else {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.check_all()
            await asyncio.sleep(self._options.check_s)

    async def check_all(self) -> None:
        await asyncio.gather(*(self._check(node) for node in list(self._nodes.by_url.values())))
        for url in self._nodes.forget_lost():
            get_logger().warning("no answer from %s for %g s: forgotten", url, self._options.forget_s)

    async def _check(self, node: Node) -> None:
        try:
            reply = await self._get(f"{node.url}/health")
            # Older servers have no such route.
            good = reply.status_code in (200, 404)
        except httpx.HTTPError:
            good = False
        if not good:
            self._nodes.lost(node)
        elif node.models or await self._learned(node):
            node.failed_s = None

    async def _learned(self, node: Node) -> bool:
        """Asks a node of the command line for its models."""
        try:
            node.models = await self.models_of(node.url)
        except RequestError:
            return False
        return bool(node.models)

    async def models_of(self, url: str) -> list[str]:
        """What a server says it serves. Raises RequestError where it cannot be asked."""
        try:
            reply = await self._get(f"{url}/v1/models")
            names = [card["id"] for card in reply.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            message = f"{url} does not say which models it serves; is a server there?"
            raise RequestError(message, 400, param="url") from None
        return [name for name in names if isinstance(name, str)]

    async def _get(self, url: str) -> httpx.Response:
        return await self._client.get(url, headers=self.headers, timeout=CHECK_TIMEOUT_S)


def keep(nodes: Nodes, path: Path | None) -> None:
    """Writes the addresses down, whole or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    kept = {node.url: {"models": node.models, "speed": node.speed} for node in nodes.by_url.values()}
    partial.write_bytes(msgspec.json.encode(kept))
    os.replace(partial, path)


def recall(nodes: Nodes, path: Path | None) -> None:
    """Nodes written down earlier; they must pass a check before they are used, so a stale file does no harm."""
    if path is None or not path.is_file():
        return
    try:
        kept: dict[str, dict[str, Any]] = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
    except msgspec.MsgspecError:
        get_logger().warning("%s cannot be read: it is left alone, and written anew with the next node", path)
        return
    for url, about in kept.items():
        node = Node(node_url(url), [str(name) for name in about.get("models") or ()], about.get("speed"))
        nodes.add(node)
        nodes.lost(node)
