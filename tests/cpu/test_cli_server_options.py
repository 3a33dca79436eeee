"""`serve api_server`: what its flags become."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.cli import main as cli
from tokenmill.cli.main import TABLE, Group, Verb
from tokenmill.cli.serve_api_server import options_of
from tokenmill.errors import ConfigError, FormatError
from tokenmill.serve.http.options import CorsOptions, ServerOptions


def options(*words: str) -> ServerOptions:
    serve = TABLE["serve"]
    assert isinstance(serve, Group)
    verb = serve.verbs["api_server"]
    assert isinstance(verb, Verb)
    return options_of(cli.parse(verb, "tokenmill serve api_server", ["m", *words]))


def test_without_flags_they_are_the_server_s_own() -> None:
    assert options() == ServerOptions()


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (("--server_name", "127.0.0.1"), "host", "127.0.0.1"),
        (("--server-port", "0"), "port", 0),
        (("--max-concurrent-requests", "4"), "max_concurrent_requests", 4),
        (("--max-queue", "9"), "max_queue", 9),
        (("--max-n", "2"), "max_n", 2),
        (("--drain-timeout", "1.5"), "drain_timeout_s", 1.5),
        (("--request-timeout", "30"), "request_timeout_s", 30.0),
        (("--disable-fastapi-docs",), "docs", False),
        (("--disable-metrics",), "metrics", False),
        (("--disable-metrics", "False"), "metrics", True),
        (("--admin-socket", "a.sock"), "admin_socket", "a.sock"),
        (("--allow-origins", "http://a", "--allow-credentials"), "cors", CorsOptions(("http://a",), credentials=True)),
        (("--api-keys", "a", "b"), "api_keys", ("a", "b")),
    ],
)
def test_a_flag_arrives(words: tuple[str, ...], field: str, value: object) -> None:
    assert getattr(options(*words), field) == value


def test_body_size() -> None:
    assert options("--max-body-mib", "2").limits.body_bytes == 2 << 20


@pytest.mark.parametrize(
    ("words", "routes"),
    [
        (("--allow-terminate-by-client",), {"terminate"}),
        (("--enable-abort-handling", "--allow-terminate-by-client", "false"), {"abort_request"}),
        (("--enable-admin-routes",), {"terminate", "abort_request"}),
    ],
)
def test_admin_routes_need_a_key(
    words: tuple[str, ...], routes: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert routes <= options(*words, "--api-keys", "k").admin_routes
    capsys.readouterr()
    assert not options(*words).admin_routes and "--admin-socket" in capsys.readouterr().err


def test_keys_come_from_a_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    monkeypatch.setenv("TOKENMILL_API_KEYS", "three, four")
    assert options("--api-keys-file", str(file)).api_keys == ("one", "two", "three", "four")
    assert not capsys.readouterr().err
    options("--api-keys", "five")
    assert "process listings" in capsys.readouterr().err
    with pytest.raises(FormatError, match="cannot be read"):
        options("--api-keys-file", str(tmp_path / "none"))


def test_tls_needs_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_KEYFILE", raising=False)
    with pytest.raises(ConfigError, match="SSL_KEYFILE"):
        options("--ssl")
    monkeypatch.setenv("SSL_KEYFILE", "k")
    monkeypatch.setenv("SSL_CERTFILE", "c")
    assert options("--ssl").tls == ("k", "c")
