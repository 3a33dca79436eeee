"""The routes that steer a server: on their own socket, or behind a key on the public port."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.support.fake_text import FakeTextEngine
from tests.support.http_server import HELLO, LOOPBACK, PATIENCE_S, Live, endless_engine, running, wait_for

from tokenmill.errors import ConfigError
from tokenmill.serve.http import HttpServer
from tokenmill.serve.http.options import check

ENDLESS = HELLO | {"ignore_eos": True, "stream": True}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # The kernel takes a hundred characters, which a temporary folder may have by itself.
    monkeypatch.chdir(tmp_path)
    return "admin.sock"


@contextmanager
def answering(live: Live, **fields: object) -> Iterator[httpx.Response]:
    with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=ENDLESS | fields, timeout=PATIENCE_S) as reply:
        wait_for(lambda: bool(live.engine.live))
        yield reply


def admin(path: str) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://admin", timeout=PATIENCE_S)


def test_the_socket_is_its_owners_and_goes_with_the_server(path: str) -> None:
    with running(admin_socket=path), admin(path) as client:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert client.get("/is_sleeping").json() == {"is_sleeping": False}
        assert client.post("/sleep").status_code == 501
        assert client.get("/v1/models").status_code == 404
        for route in ("/abort_request", "/terminate", "/sleep", "/wakeup"):
            assert client.get(route).status_code == 405
    assert not os.path.exists(path)


@pytest.mark.parametrize("way", ["all", "session", "id"])
def test_abort_on_the_socket(path: str, way: str) -> None:
    with running(endless_engine(), admin_socket=path) as live, admin(path) as client:
        assert client.post("/abort_request", json={"session_id": 5}).status_code == 400
        assert client.post("/abort_request", json={"request_id": "chatcmpl-abc"}).status_code == 400
        assert client.post("/abort_request", json={}).status_code == 400
        with answering(live, session_id=5) as reply:
            name = next(iter(live.server.service.live)).rpartition("-")[0]
            body = {"all": {"abort_all": True}, "session": {"session_id": 5}, "id": {"request_id": name}}[way]
            done = client.post("/abort_request", json=body)
            assert done.status_code == 200 and done.content == b""
            assert '"finish_reason":"abort"' in reply.read().decode()


def test_on_the_public_port_only_what_is_named_and_behind_a_key() -> None:
    with running(endless_engine(), api_keys=("k",), admin_routes=frozenset({"abort_request"})) as live:
        key = {"authorization": "Bearer k"}
        assert live.client.post("/abort_request", json={"abort_all": True}).status_code == 401
        assert live.client.post("/abort_request", json={"abort_all": True}, headers=key).status_code == 200
        assert live.client.post("/terminate", headers=key).status_code == 404
    with pytest.raises(ConfigError, match="--api-keys"):
        check(replace(LOOPBACK, admin_routes=frozenset({"terminate"})))


def test_a_path_that_cannot_be_had_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")

    async def factory() -> FakeTextEngine:
        return FakeTextEngine()

    for name in ("file", "no/such/folder/s"):
        with pytest.raises(ConfigError, match="--admin-socket"):
            HttpServer(factory, replace(LOOPBACK, admin_socket=str(tmp_path / name)))
    assert (tmp_path / "file").read_text() == "precious"
