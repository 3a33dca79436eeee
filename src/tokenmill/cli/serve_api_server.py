"""An OpenAI-compatible HTTP server: /v1/models, /v1/chat/completions, /v1/completions, /metrics, a page at /."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill import env
from tokenmill.cli.engine import add_model_flags, open_engine
from tokenmill.cli.legacy import Later, add_ignored, add_later, note
from tokenmill.cli.options import add_engine_flags, positive
from tokenmill.cli.parser import Parser
from tokenmill.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from tokenmill.api.contract import TextEngine
    from tokenmill.serve.http.options import ServerOptions

IGNORED = {
    "--qos-config-path": "quality of service is not served",
    "--max-log-len": "prompts are never logged",
    "--cap": "chat and plain completion are both served",
}
IGNORED_SWITCHES = {
    "--enable-metrics": "metrics are on; --disable-metrics turns them off",
}
# LMDeploy's flags for single admin routes.
ADMIN_SWITCHES = {"--allow-terminate-by-client": "terminate", "--enable-abort-handling": "abort_request"}
NOT_SERVED = {
    "--meta-instruction": Later("send a system message, or write it into --chat-template FILE.json"),
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder, a hub name, or demo")
    group = parser.add_argument_group("server")
    group.add_argument("--server-name", default="0.0.0.0", help="address to listen on (default: %(default)s)")
    group.add_argument("--server-port", type=int, default=23333, help="0 takes any free port (default: %(default)s)")
    group.add_argument("--api-keys", nargs="+", default=[], help="accepted keys; TOKENMILL_API_KEYS and "
                       "--api-keys-file keep them out of process listings")  # fmt: skip
    group.add_argument("--api-keys-file", type=Path, help="a file with a key a line")
    group.add_argument("--allow-origins", nargs="+", default=[], help="origins of other sites' pages (default: none)")
    group.add_argument("--allow-methods", nargs="+", default=["*"])
    group.add_argument("--allow-headers", nargs="+", default=["*"])
    group.add_argument("--max-concurrent-requests", type=positive, help="more wait (default: as many as a step holds)")
    group.add_argument("--max-n", type=positive, default=16, help="most answers to one request (default: %(default)s)")
    group.add_argument("--max-body-mib", type=positive, default=32, help="largest request (default: %(default)s)")
    group.add_argument("--drain-timeout", type=float, default=60.0, help="seconds to finish answers after SIGTERM")
    group.add_argument("--request-timeout", type=float, help="seconds after which any answer ends")
    parser.add_switch("--allow-credentials", "let other sites' pages send cookies")
    group.add_argument("--admin-socket", metavar="PATH", help="a unix socket, for this user only, with the routes that "
                       "steer the server: abort_request, terminate, sleep, ...")  # fmt: skip
    parser.add_switch("--enable-admin-routes", "those routes on the public port too, for whoever has a key")
    for name, route in ADMIN_SWITCHES.items():
        parser.add_switch(name, f"only the route {route}")
    group.add_argument("--proxy-url", help="a proxy (tokenmill serve proxy) that is told of this server")
    parser.add_switch("--ssl", "TLS, with the files of SSL_KEYFILE and SSL_CERTFILE")
    parser.add_switch("--disable-fastapi-docs", "no page at / and no /openapi.json")
    parser.add_switch("--disable-metrics", "no /metrics")
    add_ignored(parser, IGNORED, IGNORED_SWITCHES)
    add_later(parser, NOT_SERVED)
    add_model_flags(parser)
    add_engine_flags(parser)


def tls_files() -> tuple[str, str]:
    key, certificate = env.ssl_files()
    if not key or not certificate:
        raise ConfigError("--ssl needs the environment variables SSL_KEYFILE and SSL_CERTFILE to name two files")
    return key, certificate


def keys_of(args: argparse.Namespace) -> tuple[str, ...]:
    lines: list[str] = []
    if args.api_keys_file:
        try:
            lines = args.api_keys_file.read_text(encoding="utf-8").split()
        except OSError as error:
            raise FormatError(f"--api-keys-file {args.api_keys_file} cannot be read: {error.strerror}") from None
    if args.api_keys:
        note("keys on a command line stand in process listings; --api-keys-file or TOKENMILL_API_KEYS do not")
    return (*args.api_keys, *lines, *env.api_keys())


def admin_routes(args: argparse.Namespace, keys: tuple[str, ...]) -> frozenset[str]:
    """What the public port may steer. Without a key nobody may; a server asked to allow it starts all the same."""
    from tokenmill.serve.http.options import ADMIN_ROUTES

    names = set(ADMIN_ROUTES if args.enable_admin_routes else ())
    names |= {route for name, route in ADMIN_SWITCHES.items() if getattr(args, name.lstrip("-").replace("-", "_"))}
    if names and not keys:
        shown = ", ".join(sorted(names))
        note(f"without --api-keys nobody may steer the server over HTTP ({shown}); use --admin-socket")
        return frozenset()
    return frozenset(names)


def options_of(args: argparse.Namespace) -> ServerOptions:
    from tokenmill.serve.http.options import MIB, CorsOptions, ServerOptions, TransportLimits

    keys = keys_of(args)
    cors = CorsOptions(
        tuple(args.allow_origins), tuple(args.allow_methods), tuple(args.allow_headers), args.allow_credentials
    )
    return ServerOptions(
        host=args.server_name,
        port=args.server_port,
        api_keys=keys,
        admin_socket=args.admin_socket,
        admin_routes=admin_routes(args, keys),
        cors=cors,
        tls=tls_files() if args.ssl else None,
        max_concurrent_requests=args.max_concurrent_requests,
        max_queue=args.engine_scheduler_max_queue or ServerOptions().max_queue,
        max_n=args.max_n,
        drain_timeout_s=args.drain_timeout,
        request_timeout_s=args.request_timeout,
        proxy_url=args.proxy_url and (args.proxy_url if "://" in args.proxy_url else f"http://{args.proxy_url}"),
        docs=not args.disable_fastapi_docs,
        metrics=not args.disable_metrics,
        log_level=env.uvicorn_log_level(),
        keep_alive_s=env.keep_alive_s(),
        limits=TransportLimits(body_bytes=args.max_body_mib * MIB),
    )


def run(args: argparse.Namespace) -> int:
    from tokenmill.serve.http.server import run_server

    async def factory() -> TextEngine:
        return await open_engine(args, args.model)

    return run_server(factory, options_of(args))
