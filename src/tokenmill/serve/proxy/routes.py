"""The proxy's own routes: nodes, models, health. Everything that servers do is handed on."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import httpx
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from tokenmill.errors import ConfigError, RequestError
from tokenmill.serve.http.body import read_json
from tokenmill.serve.openai.schema import Model
from tokenmill.serve.proxy.health import keep
from tokenmill.serve.proxy.nodes import Node, node_url
from tokenmill.serve.proxy.state import Proxy

FORWARDED = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/embeddings", "/v1/rerank", "/v1/encode", "/generate", "/pooling", "/get_ppl", "/tokenize", "/detokenize",
)  # fmt: skip
router = APIRouter(tags=["proxy"])
ModelNames = Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=1024)]


class Status(Model):
    role: Annotated[int, Field(ge=0, le=3)] | Literal["Hybrid"] = 1
    models: ModelNames = []
    speed: Annotated[float, Field(gt=0)] | None = None


class NodeRequest(Model):
    url: Annotated[str, Field(min_length=1, max_length=512)]
    status: Status | None = None


def proxy_of(request: Request) -> Proxy:
    proxy = request.app.state.proxy
    assert isinstance(proxy, Proxy)
    return proxy


async def forward(request: Request) -> Response:
    """Hands a request to one of the servers."""
    return await proxy_of(request).forwarder.forward(request)


for _path in FORWARDED:
    router.add_api_route(_path, forward, methods=["POST"], summary="Handed on to a server")


@router.get("/v1/models", summary="Models of all servers")
async def models(request: Request) -> Response:
    created = int(time.time())
    cards = [{"id": name, "object": "model", "created": created, "owned_by": "tokenmill", "root": name, "parent": None}
             for name in proxy_of(request).nodes.models()]  # fmt: skip
    return JSONResponse({"object": "list", "data": cards})


@router.get("/health", summary="200 while a server can be reached")
async def health(request: Request) -> Response:
    good = [node.url for node in proxy_of(request).nodes.by_url.values() if node.failed_s is None]
    body = {"status": "healthy" if good else "unhealthy", "message": f"{len(good)} servers"}
    return JSONResponse(body, 200 if good else 503)


@router.get("/nodes/status", summary="The servers and their load")
async def status(request: Request) -> Response:
    return JSONResponse({url: node.status() for url, node in proxy_of(request).nodes.by_url.items()})


@router.post("/nodes/add", summary="A further server")
async def add(request: Request) -> Response:
    proxy, (body, _) = proxy_of(request), await read_json(request, NodeRequest)
    url, said = _url(body.url), body.status or Status()
    names = said.models or await proxy.checker.models_of(url)
    proxy.nodes.add(Node(url, names, said.speed, said.role if isinstance(said.role, int) else 1))
    keep(proxy.nodes, proxy.options.kept_nodes)
    return JSONResponse("Added successfully")


@router.post("/nodes/remove", summary="A server fewer")
async def remove(request: Request) -> Response:
    proxy, old = proxy_of(request), request.query_params.get("node_url")
    url = old if old is not None else (await read_json(request, NodeRequest))[0].url
    if not proxy.nodes.remove(_url(url)):
        raise RequestError(f"there is no node {_url(url)}", 404, param="url")
    keep(proxy.nodes, proxy.options.kept_nodes)
    return JSONResponse("Deleted successfully")


@router.post("/nodes/terminate", summary="Ends a server")
async def terminate(request: Request) -> Response:
    proxy, (body, _) = proxy_of(request), await read_json(request, NodeRequest)
    node = proxy.nodes.by_url.get(_url(body.url))
    if node is None:
        raise RequestError(f"there is no node {_url(body.url)}", 404, param="url")
    return JSONResponse(await _end(proxy, node))


@router.post("/nodes/terminate_all", summary="Ends every server")
async def terminate_all(request: Request) -> Response:
    proxy = proxy_of(request)
    return JSONResponse({node.url: await _end(proxy, node) for node in list(proxy.nodes.by_url.values())})


async def _end(proxy: Proxy, node: Node) -> str:
    """A server ends itself only where it allows it: `--enable-admin-routes` and a key."""
    try:
        reply = await proxy.client.post(f"{node.url}/terminate", headers=proxy.checker.headers, json={}, timeout=10)
    except httpx.HTTPError:
        proxy.nodes.lost(node)
        return "Failed: it cannot be reached"
    if reply.status_code != 200:
        return f"Failed: it answers {reply.status_code}"
    proxy.nodes.remove(node.url)
    keep(proxy.nodes, proxy.options.kept_nodes)
    return "Terminated successfully"


def _url(text: Any) -> str:
    try:
        return node_url(text)
    except ConfigError as error:
        raise RequestError(str(error), 400, param="url") from None
