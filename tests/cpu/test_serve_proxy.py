"""The proxy before real servers with a small engine: forwarding, choice of nodes, loss of nodes, keys, registration."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from tests.support.fake_text import FakeTextEngine
from tests.support.http_server import HELLO, PATIENCE_S, Live, endless_engine, running, wait_for
from tests.support.proxy import LiveProxy, proxying

from tokenmill.errors import ConfigError, RequestError
from tokenmill.serve.http.options import ServerOptions
from tokenmill.serve.http.register import own_url
from tokenmill.serve.proxy.nodes import STRATEGIES, Node, Nodes, node_url


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Live, Live]]:
    with running(FakeTextEngine()) as one, running(FakeTextEngine()) as two:
        yield one, two


@pytest.fixture
def proxy(servers: tuple[Live, Live]) -> Iterator[LiveProxy]:
    with proxying(*(server.url for server in servers)) as live:
        yield live
        wait_for(lambda: all(node["unfinished"] == 0 for node in live.status().values()))


def test_answers_are_the_servers_own(servers: tuple[Live, Live], proxy: LiveProxy) -> None:
    cards = proxy.client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["fake"]
    for path, body in (
        ("/v1/chat/completions", HELLO), ("/v1/completions", {"model": "fake", "prompt": "one two"}),
        ("/v1/encode", {"input": "one"}), ("/get_ppl", {"input": "one two"}), ("/generate", {"prompt": "one"}),
    ):  # fmt: skip
        through, direct = proxy.client.post(path, json=body), servers[0].client.post(path, json=body)
        drop = {"id", "created"}
        assert through.status_code == direct.status_code == 200
        assert {k: v for k, v in through.json().items() if k not in drop} == {
            k: v for k, v in direct.json().items() if k not in drop
        }
    refused = proxy.client.post("/v1/chat/completions", json=HELLO | {"temperature": 9})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "temperature"


def test_streams_pass_as_they_come(proxy: LiveProxy) -> None:
    sdk = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0)
    chunks = sdk.chat.completions.create(stream=True, **HELLO)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "echo hello world"
    raw = proxy.client.post("/v1/chat/completions", json=HELLO | {"stream": True})
    assert raw.headers["content-type"].startswith("text/event-stream") and raw.text.endswith("data: [DONE]\n\n")


def test_unknown_models_and_empty_proxies(proxy: LiveProxy) -> None:
    unknown = proxy.client.post("/v1/chat/completions", json=HELLO | {"model": "nobody"})
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    with proxying() as empty:
        refused = empty.client.post("/v1/chat/completions", json=HELLO)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert empty.client.get("/health").status_code == 503
        assert empty.client.post("/v1/chat/completions", content=b"{").status_code == 400


def test_nodes_come_and_go(servers: tuple[Live, Live], proxy: LiveProxy) -> None:
    one, two = (server.url for server in servers)
    assert proxy.status()[one]["models"] == ["fake"] and proxy.status()[one]["role"] == 1
    assert proxy.client.post("/nodes/remove", json={"url": one}).status_code == 200
    assert proxy.client.post(f"/nodes/remove?node_url={two}").status_code == 200
    assert proxy.status() == {}
    assert proxy.client.post("/nodes/remove", json={"url": one}).status_code == 404
    assert proxy.add(one, models=["other"], speed=2.0).status_code == 200
    assert proxy.client.get("/v1/models").json()["data"][0]["id"] == "other"
    for url in ("file:///etc/passwd", "http://", "http://u:p@host", "http://host/path"):
        assert proxy.add(url).status_code == 400
    with _nobody() as url:
        assert proxy.add(url).status_code == 400


def test_a_lost_node_is_passed_over_and_comes_back(servers: tuple[Live, Live]) -> None:
    with proxying(servers[0].url) as proxy:
        with running(FakeTextEngine()) as other:
            lost = other.url
            assert proxy.add(lost).status_code == 200
        for _ in range(8):
            assert proxy.client.post("/v1/chat/completions", json=HELLO).status_code == 200
        wait_for(lambda: not proxy.status()[lost]["healthy"])
        proxy.proxy.nodes._forget_s = 0.0
        wait_for(lambda: lost not in proxy.status())


def test_a_node_lost_in_mid_stream_ends_the_answer_with_an_error() -> None:
    with _broken_server() as url, proxying() as proxy:
        assert proxy.add(url, models=["fake"]).status_code == 200
        text = proxy.client.post("/v1/chat/completions", json=HELLO | {"stream": True}).text
        first, last, end = text.strip().split("\n\n")
        assert json.loads(first.removeprefix("data: ")) == {"said": 1}
        assert json.loads(last.removeprefix("data: "))["error"]["error"]["code"] == "node_lost"
        assert end == "data: [DONE]"


def test_a_busy_node_is_passed_over(servers: tuple[Live, Live]) -> None:
    with (
        running(endless_engine(), max_concurrent_requests=1, max_queue=0) as slow,
        proxying(slow.url, servers[0].url) as proxy,
        slow.client.stream("POST", "/v1/chat/completions", json=HELLO | {"stream": True, "ignore_eos": True}),
    ):
        wait_for(lambda: bool(slow.engine.live))
        for _ in range(6):
            assert proxy.client.post("/v1/chat/completions", json=HELLO).status_code == 200
        assert proxy.client.post("/nodes/remove", json={"url": servers[0].url}).status_code == 200
        busy = proxy.client.post("/v1/chat/completions", json=HELLO)
        assert busy.status_code == 429 and busy.json()["error"]["code"] == "busy"


def test_a_client_that_leaves_ends_the_servers_work() -> None:
    with running(endless_engine()) as slow, proxying(slow.url) as proxy:
        body = HELLO | {"ignore_eos": True}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=httpx.Timeout(PATIENCE_S, read=0.3))
        wait_for(lambda: not slow.engine.live)
        with proxy.client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as stream:
            # An iterator that is let go closes the connection.
            lines = stream.iter_lines()
            next(lines)
            assert slow.engine.live
        wait_for(lambda: not slow.engine.live)
        wait_for(lambda: proxy.status()[slow.url]["unfinished"] == 0)


def test_keys_are_asked_for_and_passed_on() -> None:
    with running(FakeTextEngine(), api_keys=("secret",)) as server, proxying(server.url, api_keys=("secret",)) as proxy:
        assert proxy.client.post("/v1/chat/completions", json=HELLO).status_code == 200
        for path in ("/v1/chat/completions", "/nodes/add", "/nodes/terminate_all"):
            assert httpx.post(f"{proxy.url}{path}", json=HELLO, timeout=PATIENCE_S).status_code == 401
        assert httpx.get(f"{proxy.url}/nodes/status", timeout=PATIENCE_S).status_code == 401
        assert httpx.get(f"{proxy.url}/health/live", timeout=PATIENCE_S).status_code == 200
        # This server lets nobody end it over HTTP.
        answer = proxy.client.post("/nodes/terminate", json={"url": server.url})
        assert answer.json() == "Failed: it answers 404"


def test_servers_register_and_take_their_leave() -> None:
    with proxying() as proxy:
        with running(FakeTextEngine(), proxy_url=proxy.url) as server:
            wait_for(lambda: server.url in proxy.status())
            assert proxy.client.post("/v1/chat/completions", json=HELLO).status_code == 200
        wait_for(lambda: proxy.status() == {})


def test_nodes_outlive_the_proxy_and_are_checked_first(servers: tuple[Live, Live], tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "nodes.json"
    with _nobody() as gone:
        with proxying(servers[0].url, kept_nodes=kept) as proxy:
            assert proxy.add(gone, models=["fake"]).status_code == 200
        with proxying(kept_nodes=kept) as proxy:
            wait_for(lambda: proxy.status()[servers[0].url]["healthy"])
            assert not proxy.status()[gone]["healthy"]
            assert proxy.client.post("/v1/chat/completions", json=HELLO).status_code == 200
    with proxying(nodes=(servers[1].url,)) as proxy:
        wait_for(lambda: proxy.status()[servers[1].url]["models"] == ["fake"])


def test_the_strategies() -> None:
    def table(strategy: str) -> Nodes:
        nodes = Nodes(strategy, 90)
        for url, speed in (("http://a", 1.0), ("http://b", 3.0), ("http://c", None)):
            nodes.add(Node(url, ["m"], speed))
        return nodes

    expected = table("min_expected_latency")
    for node, unfinished in zip(expected.by_url.values(), (2, 5, 3), strict=True):
        node.unfinished = unfinished
    # 2/1, 5/3, and 3/2 for the node of average speed.
    assert expected.pick("m").url == "http://c"
    assert expected.pick("m", tried=["http://c"]).url == "http://b"
    observed = table("min_observed_latency")
    for node, latencies in zip(observed.by_url.values(), ([0.1] * 15 + [0.5] * 15, [0.4], [0.9]), strict=True):
        node.latencies_s.extend(latencies)
    assert observed.pick("m").url == "http://b"
    nodes = table("random")
    drawn = Counter(nodes.pick("m").url for _ in range(3000))
    # Weights 1, 3, 2.
    assert [round(drawn[url] / 500) for url in ("http://a", "http://b", "http://c")] == [1, 3, 2]
    with pytest.raises(RequestError) as missing:
        nodes.pick("other")
    assert missing.value.status == 404 and set(STRATEGIES) == {
        "random", "min_expected_latency", "min_observed_latency"
    }


def test_addresses() -> None:
    assert node_url("host:1") == "http://host:1" and node_url("https://h/") == "https://h"
    for text in ("ftp://h", "http://h:99999", "http://h?x", ""):
        with pytest.raises(ConfigError):
            node_url(text)
    fixed = ServerOptions(host="10.1.2.3", proxy_url="http://p:1")
    assert own_url(fixed, 5) == "http://10.1.2.3:5"
    assert own_url(ServerOptions(host="0.0.0.0", proxy_url="http://127.0.0.1:9"), 5) == "http://127.0.0.1:5"


@contextmanager
def _nobody() -> Iterator[str]:
    """An address that refuses connections: its port is taken, so that nobody else gets it, and not listened on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}"


class _broken_server:
    """Says one event of a stream and then goes away; its health is good."""

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *error: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                asked = connection.recv(65536)
                if asked.startswith(b"GET"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                    continue
                head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                said = b'data: {"said":1}\n\n'
                connection.sendall(head + f"{len(said):x}\r\n".encode() + said + b"\r\n")
