"""Hardening of who may ask what: keys, paths, methods, CORS."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from tests.support.http_server import HELLO, Live, running

from tokenmill.errors import ConfigError
from tokenmill.serve.http import CorsOptions, HttpServer, ServerOptions
from tokenmill.serve.http.auth import KeyRing
from tokenmill.serve.http.banner import banner

KEYS = ("first-key", "second-key")
PAGES = ("/", "/docs", "/redoc", "/ui")
OPEN = {"/health/live", "/health/ready", "/version"}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with running(api_keys=KEYS) as server:
        yield server


@pytest.fixture(scope="module")
def free() -> Iterator[Live]:
    with running() as server:
        yield server


def routes(live: Live) -> list[tuple[str, str]]:
    """Every method and path the application has, from the routers themselves, shown in the document or not."""
    found, todo = [], list(live.server.config.app.routes)  # type: ignore[union-attr]
    while todo:
        route = todo.pop()
        if hasattr(route, "methods"):
            found += [(method, route.path.replace("{name:path}", "fake")) for method in route.methods]
        else:
            todo += route.original_router.routes
    assert {("POST", "/v1/chat/completions"), ("GET", "/"), ("GET", "/metrics")} <= set(found)
    return found


def test_every_route_but_three_needs_a_key(live: Live) -> None:
    seen_open = set()
    for method, path in routes(live):
        reply = live.client.request(method, path, json={} if method == "POST" else None)
        if path in OPEN:
            seen_open.add(path)
            assert reply.status_code == 200
            continue
        assert reply.status_code == 401, (method, path)
        assert reply.headers["www-authenticate"].split()[0] == ("Basic" if path in PAGES else "Bearer")
        if method == "HEAD":
            continue
        error = reply.json()["error"]
        assert error["type"] == "authentication_error" and error["message"] == "Unauthorized."
    assert seen_open == OPEN
    assert live.client.get("/openapi.json").status_code == 401


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("form", ["Bearer {}", "bearer  {}"])
def test_each_key_is_accepted(live: Live, key: str, form: str) -> None:
    assert live.client.get("/v1/models", headers={"authorization": form.format(key)}).status_code == 200
    assert live.client.get("/v1/models", headers={"x-api-key": key}).status_code == 200


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer first-ke", "Bearer first-key2", "Basic first-key", "first-key",
              "Bearer FIRST-KEY", "Bearer first-key,second-key", "Bearer \xe9"],
)  # fmt: skip
def test_what_is_no_key(live: Live, value: str) -> None:
    reply = live.client.get("/v1/models", headers={"authorization": value.encode("latin-1")})
    assert reply.status_code == 401
    assert "first" not in reply.text


@pytest.mark.parametrize(
    "target",
    [
        "//health/live", "/health/live/", "/Health/Live", "/health/../v1/models", "/health/live/../../v1/models",
        "/%2e%2e/v1/models", "/v1/models?/health/live", "/v1/models;/health/live", "//v1/models",
        "/v1//models", "/health/live%00", "/v1/models#/health/live", "http://a/v1/models", "/./v1/models", "/metrics/",
        "\\v1\\models", "*",
    ],
)  # fmt: skip
@pytest.mark.parametrize("host", ["a", "a/health/live?", "a#", "a@b", "a\\b"])
def test_no_spelling_of_path_or_host_goes_around_the_key(live: Live, target: str, host: str) -> None:
    data = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    reply = live.raw(data)
    assert reply.split(b" ", 2)[1] in (b"401", b"400"), reply[:200]


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/V1/models", "/v1/../v1/models", "/admin", "/.env",
                                  "/v1/models%2f..", "/ui/../health"])  # fmt: skip
def test_unknown_paths_are_404_and_never_a_redirect(free: Live, path: str) -> None:
    reply = free.raw(f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 404"), reply[:100]
    assert b"location" not in reply.lower() and b"evil" not in reply


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "GET", "HEAD"])
def test_other_methods_on_a_post_route_do_nothing(free: Live, method: str) -> None:
    seen = len(free.engine.seen)
    reply = free.client.request(method, "/v1/chat/completions", json=HELLO)
    assert reply.status_code == 405
    assert len(free.engine.seen) == seen


def test_admin_routes_are_not_on_the_public_port(free: Live) -> None:
    for path in ("/sleep", "/wakeup", "/abort_request", "/terminate", "/is_sleeping"):
        for method in ("GET", "POST"):
            assert free.client.request(method, path, json={}).status_code == 404, path
    assert free.chat().status_code == 200


def test_cors_is_off_by_default(free: Live) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    reply = free.client.options("/v1/chat/completions", headers=headers)
    assert reply.status_code == 405
    reply = free.client.post("/v1/chat/completions", json=HELLO, headers={"origin": "https://evil.example"})
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_cors_answers_the_origins_it_was_given() -> None:
    with running(cors=CorsOptions(("https://good.example",))) as live:
        def allowed(origin: str) -> str | None:
            return live.client.get("/v1/models", headers={"origin": origin}).headers.get("access-control-allow-origin")

        assert allowed("https://good.example") == "https://good.example"
        assert allowed("https://evil.example") is None


@pytest.mark.parametrize(
    "options",
    [
        ServerOptions(cors=CorsOptions(("*",), credentials=True)),
        ServerOptions(port=70000),
        ServerOptions(host="127.0.0.1", port=0, api_keys=("a", " ")),
        ServerOptions(max_n=0),
        ServerOptions(max_queue=-1),
        ServerOptions(max_concurrent_requests=0),
        ServerOptions(host="192.0.2.1", port=0),
    ],
)
def test_options_that_cannot_be_served_are_refused_at_start(options: ServerOptions) -> None:
    async def factory() -> None:
        raise AssertionError("never reached")

    with pytest.raises(ConfigError, match="--"):
        HttpServer(factory, options)  # type: ignore[arg-type]


def test_keys_are_kept_as_digests_and_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    ring = KeyRing(KEYS)
    assert "first" not in repr(vars(ring))
    assert ring.accepts(b"first-key") and len(compared) == 2
    assert not ring.accepts(b"other") and len(compared) == 4


def test_the_banner_warns_in_red_without_keys_on_an_open_address() -> None:
    lines = banner(ServerOptions(), 23333, color=True)
    assert [line.split()[0] for line in lines[:3]] == ["HINT:"] * 3 and "http://0.0.0.0:23333" in lines[0]
    assert lines[-1].startswith("\x1b[1;31mauth: OFF")
    assert banner(ServerOptions(host="127.0.0.1"), 1, color=True)[-1] == "auth: OFF (this machine only)"
    with_keys = "\n".join(banner(ServerOptions(api_keys=KEYS), 1, color=False))
    assert "auth: ON (2 keys)" in with_keys and "first-key" not in with_keys


def test_a_browser_opens_the_pages_with_a_key_as_password(live: Live) -> None:
    for page in ("/", "/ui"):
        assert live.client.get(page, auth=("anybody", KEYS[1])).status_code == 200
        assert live.client.get(page, auth=("anybody", "wrong")).status_code == 401
    assert live.client.get("/v1/models", auth=("", KEYS[0])).status_code == 200


def test_keys_appear_in_no_answer(live: Live) -> None:
    with httpx.Client(base_url=live.url, headers={"authorization": f"Bearer {KEYS[0]}"}, timeout=60) as client:
        texts = [client.get(path).text for path in ("/", "/openapi.json", "/metrics", "/health", "/v1/models", "/nope")]
    assert not any(key in text for key in KEYS for text in texts)
