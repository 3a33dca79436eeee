"""Routes of LMDeploy that Tokenmill does not have: each is known, and says in one line that it is not served (501)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenmill.errors import RequestError

_WEIGHTS = "weights are not changed while a model is served; start the server with the new checkpoint"
_DISAGGREGATION = "prefill and decode are not served by different servers; one server does both"
_QOS = "there are no classes of users; use the route without _qos"
# (method, path) -> why not, and what to do in its place.
ROUTES = {
    **{("POST", path): _WEIGHTS for path in (
        "/update_weights", "/init_weights_update_group", "/update_weights_from_distributed",
        "/destroy_weights_update_group",
    )},
    ("GET", "/distserve/engine_info"): _DISAGGREGATION,
    **{("POST", f"/distserve/{name}"): _DISAGGREGATION for name in (
        "p2p_initialize", "p2p_connect", "p2p_drop_connect", "free_cache",
    )},
    **{("POST", f"/v1/{name}_qos"): _QOS for name in ("chat/completions", "completions", "chat/interactive")},
}  # fmt: skip

router = APIRouter(include_in_schema=False)


def _refusing(path: str, why: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(request: Request) -> Response:
        raise RequestError(f"{path} is not served: {why}", 501, code="not_implemented")

    return refuse


for (_method, _path), _why in ROUTES.items():
    router.add_api_route(_path, _refusing(_path, _why), methods=[_method], response_model=None)
