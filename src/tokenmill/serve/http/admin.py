"""Routes that steer the server: abort, terminate, sleep. On a unix socket of mode 0600; on the public port only those
that the options name, and then behind a key. They change things, so none answers GET, but for `is_sleeping`.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse, Response

from tokenmill.errors import CapacityError, ConfigError, FormatError, RequestError
from tokenmill.serve.http import errors
from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.options import ADMIN_ROUTES, ServerOptions
from tokenmill.serve.http.schema import AbortRequest
from tokenmill.serve.http.service import Phase, Service, service_of


async def abort_request(request: Request) -> Response:
    """Ends one session's answer, one request by its id, or all."""
    service = service_of(request)
    body, _ = await read_json(request, AbortRequest)
    if body.abort_all:
        service.abort_all()
    elif body.request_id is not None:
        service.abort_request(body.request_id)
    elif body.session_id != -1:
        service.abort_session(body.session_id)
    else:
        raise RequestError("say session_id, request_id or abort_all", 400, param="session_id")
    return Response(status_code=200)


async def terminate(request: Request) -> Response:
    """What SIGTERM does: no new work, running answers finish, exit 0."""
    os.kill(os.getpid(), signal.SIGTERM)
    return JSONResponse({"status": "terminating"})


async def sleep(request: Request) -> Response:
    """`level` 1 keeps weights in the host's memory, 2 drops them. Answers once the memory is free."""
    level = request.query_params.get("level", "1")
    if level not in ("1", "2"):
        raise RequestError(f"level is {level[:32]!r}; it must be 1 or 2", 400, param="level")
    await _steered(service_of(request).sleep(int(level)))
    return Response(status_code=200)


async def wakeup(request: Request) -> Response:
    """`tags` (weights, kv_cache; several may be given) says what wakes, none: everything."""
    await _steered(service_of(request).wakeup(tuple(request.query_params.getlist("tags"))))
    return Response(status_code=200)


async def _steered(order: Awaitable[None]) -> None:
    try:
        await order
    except (CapacityError, ConfigError, FormatError) as error:
        # The engine lives and sleeps on; what it lacks is said.
        raise RequestError(str(error), 503, code="sleeping") from error


async def is_sleeping(request: Request) -> Response:
    return JSONResponse({"is_sleeping": service_of(request).phase is Phase.SLEEPING})


def router(names: Iterable[str]) -> APIRouter:
    """The named routes."""
    made = APIRouter(tags=["admin"])
    known = {"abort_request": abort_request, "terminate": terminate, "sleep": sleep, "wakeup": wakeup,
             "is_sleeping": is_sleeping}  # fmt: skip
    for name in ADMIN_ROUTES:
        if name in names:
            methods = ["GET"] if name == "is_sleeping" else ["POST"]
            made.add_api_route(f"/{name}", known[name], methods=methods, response_model=None)
    return made


class AdminServer(uvicorn.Server):
    """A small server beside the public one, on its event loop. Whoever may open the socket may steer."""

    def __init__(self, service: Service, path: str) -> None:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
        app.state.service = service
        errors.install(app)
        app.include_router(router(ADMIN_ROUTES))
        self.path = path
        self._socket = bind(path)
        super().__init__(uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False))

    async def open(self) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets=[self._socket])

    async def close(self) -> None:
        await self.shutdown(sockets=[self._socket])
        with suppress(FileNotFoundError):
            os.unlink(self.path)


def admin_of(service: Service, options: ServerOptions) -> AdminServer | None:
    return None if options.admin_socket is None else AdminServer(service, options.admin_socket)


def bind(path: str) -> socket.socket:
    """The listening socket, for this user only. Raises ConfigError where the path cannot be had."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"--admin-socket {Path(path).name} exists and is no socket; choose another path")
        # Left behind by a server that was killed.
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise ConfigError(f"--admin-socket {Path(path).name} cannot be made: {error.strerror or error}") from None
    finally:
        os.umask(before)
    return listener
