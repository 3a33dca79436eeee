"""A server tells a proxy that it is there: again and again, so that a proxy started anew learns of it too."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

import httpx

from tokenmill.log import get_logger
from tokenmill.serve.http.options import ServerOptions

AGAIN_S = 20.0


async def stay_registered(options: ServerOptions, port: int, model: str) -> None:
    """Until cancelled; then the proxy is told that the server is gone."""
    assert options.proxy_url is not None, "only a server with a proxy registers"
    base = options.proxy_url.rstrip("/")
    url = own_url(options, port)
    headers = {"Authorization": f"Bearer {options.api_keys[0]}"} if options.api_keys else {}
    async with httpx.AsyncClient(headers=headers, timeout=5, trust_env=False) as client:
        try:
            while True:
                await _tell(client, f"{base}/nodes/add", {"url": url, "status": {"models": [model]}})
                await asyncio.sleep(AGAIN_S)
        finally:
            await _tell(client, f"{base}/nodes/remove", {"url": url})


async def _tell(client: httpx.AsyncClient, url: str, body: dict[str, object]) -> None:
    try:
        reply = await client.post(url, json=body)
    except httpx.HTTPError as error:
        get_logger().warning("the proxy cannot be told (%s): %s", type(error).__name__, url)
        return
    if reply.status_code != 200:
        get_logger().warning("the proxy refuses (%d): %s", reply.status_code, url)


def own_url(options: ServerOptions, port: int) -> str:
    """Where the proxy reaches this server: the address it listens on, or the one that faces the proxy."""
    host = options.host if options.host not in ("0.0.0.0", "::", "") else _facing(options.proxy_url or "")
    scheme = "https" if options.tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _facing(url: str) -> str:
    """This machine's address on the way to `url`; no packet is sent to find out."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((parts.hostname or "127.0.0.1", parts.port or 80))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
