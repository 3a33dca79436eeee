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

from tokenmill.errors import CapacityError, ConfigError, RequestError
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
        assert client.get("/v1/models").status_code == 404
        for route in ("/abort_request", "/terminate", "/sleep", "/wakeup"):
            assert client.get(route).status_code == 405
    assert not os.path.exists(path)


def test_a_server_sleeps_and_wakes(path: str) -> None:
    """What needs the engine is refused with 503 until every part is awake; the rest, and health, is answered."""
    with running(FakeTextEngine(step_s=0.01), admin_socket=path) as live, admin(path) as client:
        with answering(live) as reply:
            assert client.post("/sleep", params={"level": 2}).status_code == 200
            assert '"finish_reason":"abort"' in reply.read().decode()
        assert client.get("/is_sleeping").json() == {"is_sleeping": True}
        refused = live.chat()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "sleeping"
        for route in ("/v1/completions", "/generate", "/v1/responses", "/v1/messages", "/v1/embeddings"):
            assert live.client.post(route, json={}).status_code == 503
        assert live.client.get("/v1/models").status_code == 200
        health = live.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "sleeping")
        assert live.client.get("/health/ready").status_code == 503
        assert client.post("/wakeup", params={"tags": "weights"}).status_code == 200
        assert live.chat().status_code == 503
        assert client.post("/wakeup?tags=kv_cache&tags=weights").status_code == 200
        assert live.chat().status_code == 200 and client.get("/is_sleeping").json() == {"is_sleeping": False}


def test_orders_that_fail_are_told(path: str) -> None:
    with running(admin_socket=path) as live, admin(path) as client:
        assert client.post("/sleep?level=3").status_code == 400
        live.engine.refuses = RequestError("this engine cannot sleep", 501)
        assert client.post("/sleep").status_code == 501
        assert live.chat().status_code == 200
        live.engine.refuses = None
        assert client.post("/sleep").status_code == 200
        live.engine.refuses = CapacityError("the weights cannot wake, as their memory is taken")
        failed = client.post("/wakeup")
        assert failed.status_code == 503 and "memory is taken" in failed.json()["message"]
        assert live.chat().status_code == 503
        live.engine.refuses = None
        assert client.post("/wakeup").status_code == 200 and live.chat().status_code == 200


def test_asleep_on_the_public_port_it_can_be_woken() -> None:
    with running(admin_routes=("sleep", "wakeup", "is_sleeping"), api_keys=("sk-secret",)) as live:
        head = {"Authorization": "Bearer sk-secret"}
        assert live.client.post("/sleep").status_code == 401
        assert live.client.post("/sleep", headers=head).status_code == 200
        assert live.client.get("/is_sleeping", headers=head).json() == {"is_sleeping": True}
        assert live.client.post("/wakeup", headers=head).status_code == 200
        live.client.headers.update(head)
        assert live.chat().status_code == 200


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
