"""What the routes of one proxy share."""

from __future__ import annotations

import httpx

from tokenmill.serve.proxy.forward import Forwarder
from tokenmill.serve.proxy.health import Checker, recall
from tokenmill.serve.proxy.nodes import Node, Nodes, node_url
from tokenmill.serve.proxy.options import ProxyOptions


class Proxy:
    """Lives on one event loop."""

    def __init__(self, options: ProxyOptions) -> None:
        self.options = options
        self.nodes = Nodes(options.strategy, options.forget_s)
        recall(self.nodes, options.kept_nodes)
        for url in options.nodes:
            node = Node(node_url(url), [])
            self.nodes.lost(node)
            self.nodes.by_url[node.url] = node
        # The environment's proxies are for other hosts than our own servers.
        self.client = httpx.AsyncClient(
            timeout=httpx.Timeout(10, read=options.timeout_s, pool=None), trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
        )
        self.forwarder = Forwarder(self.nodes, self.client)
        self.checker = Checker(self.nodes, self.client, options)
