"""The servers behind a proxy, and which of them is to answer. Plain state of one event loop; no I/O.

A node that cannot be reached is passed over from that moment, comes back with its next good health check, and is
forgotten after `forget_s` without one.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tokenmill.errors import ConfigError, RequestError

# What LMDeploy's strategy of observed latency looks back on.
LATENCIES = 15


@dataclass(slots=True)
class Node:
    """One server. `speed` is what its owner says of it, in any unit; `failed_s` is when it was first found lost."""

    url: str
    models: list[str]
    speed: float | None = None
    role: int = 1
    unfinished: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    failed_s: float | None = None

    def status(self) -> dict[str, Any]:
        """In LMDeploy's words; `healthy` is ours."""
        return {
            "role": self.role, "models": self.models, "unfinished": self.unfinished,
            "latency": list(self.latencies_s), "speed": self.speed, "healthy": self.failed_s is None,
        }  # fmt: skip


def _by_weight(nodes: list[Node]) -> Node:
    """At random, faster ones more often."""
    return random.choices(nodes, [_speed(node, nodes) for node in nodes])[0]


def _least_expected(nodes: list[Node]) -> Node:
    """The shortest queue, measured by the node's speed; at random among equals."""
    return min(nodes, key=lambda node: (node.unfinished / _speed(node, nodes), random.random()))


def _least_observed(nodes: list[Node]) -> Node:
    """The best mean of the last latencies; a node without any is tried first."""
    return min(nodes, key=lambda node: (_mean(node.latencies_s), node.unfinished, random.random()))


STRATEGIES: dict[str, Callable[[list[Node]], Node]] = {
    "min_expected_latency": _least_expected,
    "min_observed_latency": _least_observed,
    "random": _by_weight,
}


def _speed(node: Node, nodes: Iterable[Node]) -> float:
    """A node that says no speed is taken for an average one."""
    if node.speed is not None:
        return node.speed
    return _mean([other.speed for other in nodes if other.speed is not None]) or 1.0


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values) if values else 0.0


class Nodes:
    """All nodes, by address."""

    def __init__(self, strategy: str, forget_s: float) -> None:
        self._choose = STRATEGIES[strategy]
        self._forget_s = forget_s
        self.by_url: dict[str, Node] = {}

    def add(self, node: Node) -> None:
        """A node added again keeps its counts."""
        known = self.by_url.get(node.url)
        if known is None:
            self.by_url[node.url] = node
            return
        known.models, known.role, known.failed_s = node.models, node.role, None
        known.speed = node.speed if node.speed is not None else known.speed

    def remove(self, url: str) -> bool:
        return self.by_url.pop(node_url(url), None) is not None

    def models(self) -> list[str]:
        """Every model that is served, once."""
        return list(dict.fromkeys(model for node in self.by_url.values() for model in node.models))

    def pick(self, model: str | None, tried: Collection[str] = ()) -> Node:
        """A node that answers for `model` (None: any). Raises RequestError 404 or 503 where there is none."""
        having = [node for node in self.by_url.values() if model is None or model in node.models]
        if not having and self.by_url:
            raise RequestError(
                f"The model {(model or '')[:128]!r} does not exist.", 404, param="model", code="model_not_found"
            )
        able = [node for node in having if node.failed_s is None and node.url not in tried]
        if not able:
            raise RequestError("no server behind this proxy can answer now; try again later", 503, code="no_node")
        return self._choose(able)

    def lost(self, node: Node) -> None:
        node.failed_s = node.failed_s or time.monotonic()

    def forget_lost(self) -> list[str]:
        """Drops what was lost for too long; their addresses."""
        now_s = time.monotonic()
        late = [n.url for n in self.by_url.values() if n.failed_s is not None and now_s - n.failed_s > self._forget_s]
        for url in late:
            del self.by_url[url]
        return late


def node_url(text: str) -> str:
    """An address in its one form. Raises ConfigError on what is none."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or parts.username or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ConfigError(f"{text[:128]!r} is no address of a server; it is like http://10.0.0.5:23333")
    return f"{parts.scheme}://{parts.netloc}"
