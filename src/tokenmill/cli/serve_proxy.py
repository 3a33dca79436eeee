"""One address before many servers: requests go to a server that has the model; lost servers are passed over."""

from __future__ import annotations

import argparse

from tokenmill import env
from tokenmill.cli.legacy import Later, add_ignored, add_later, note
from tokenmill.cli.parser import Parser
from tokenmill.cli.serve_api_server import tls_files

STRATEGIES = ("random", "min_expected_latency", "min_observed_latency")
IGNORED = {
    "--migration-protocol": "there is one server role",
    "--link-type": "there is one server role",
}
IGNORED_SWITCHES = {
    "--disable-gdr": "there is one server role",
    "--dummy-prefill": "there is one server role",
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--server-name", default="0.0.0.0", help="address to listen on (default: %(default)s)")
    parser.add_argument("--server-port", type=int, default=8000, help="0 takes any free port (default: %(default)s)")
    parser.add_argument("--routing-strategy", "--strategy", choices=STRATEGIES, default="min_expected_latency",
                        help="which of the servers gets a request (default: %(default)s)")  # fmt: skip
    parser.add_argument("--node", "--nodes", nargs="+", default=[], metavar="URL", help="servers, beside those that "
                        "register with --proxy-url or /nodes/add")  # fmt: skip
    parser.add_argument("--api-keys", nargs="+", default=[], help="accepted keys, the servers' own; TOKENMILL_API_KEYS "
                        "keeps them out of process listings")  # fmt: skip
    parser.add_argument("--log-level", default="WARNING", help="DEBUG, INFO, WARNING, ERROR (default: %(default)s)")
    parser.add_switch("--ssl", "TLS, with the files of SSL_KEYFILE and SSL_CERTFILE")
    parser.add_switch("--disable-cache-status", "forget the servers when the proxy ends")
    add_later(parser, {"--serving-strategy": Later("prefill and decode on separate servers are not served yet",
                                                   ("Hybrid",))})  # fmt: skip
    add_ignored(parser, IGNORED, IGNORED_SWITCHES)


def run(args: argparse.Namespace) -> int:
    from tokenmill.serve.proxy.options import ProxyOptions
    from tokenmill.serve.proxy.server import run_proxy

    if args.api_keys:
        note("keys on a command line stand in process listings; TOKENMILL_API_KEYS does not")
    return run_proxy(ProxyOptions(
        host=args.server_name,
        port=args.server_port,
        strategy=args.routing_strategy,
        nodes=tuple(args.node),
        api_keys=(*args.api_keys, *env.api_keys()),
        tls=tls_files() if args.ssl else None,
        timeout_s=env.proxy_timeout_s(),
        forget_s=env.proxy_forget_s(),
        kept_nodes=None if args.disable_cache_status else env.cache_dir() / "proxy_nodes.json",
        log_level=args.log_level.lower(),
        keep_alive_s=env.keep_alive_s(),
    ))  # fmt: skip
