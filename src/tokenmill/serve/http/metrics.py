"""Prometheus figures of one server: LMDeploy's names, and vLLM's for what dashboards read most.

Counters and histograms are kept as requests go by; gauges are set from the engine's snapshot when somebody asks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tokenmill.engine.contract import Stats
from tokenmill.types import Chunk, Finish

LABELS = ("model_name", "engine")
_FAST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
           160.0, 640.0, 2560.0)
_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
            80.0)
_WHOLE_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
            960.0, 1920.0, 7680.0)


def token_buckets(max_tokens: int) -> tuple[float, ...]:
    """The 1-2-5 series up to `max_tokens`."""
    series = [float(m * 10**e) for e in range(9) for m in (1, 2, 5)]
    return tuple(value for value in series if value <= max_tokens) or (1.0,)


GAUGES = {
    "lmdeploy:num_requests_running": "Choices the engine runs.",
    "lmdeploy:num_requests_waiting": "Choices the engine holds in its queue.",
    "lmdeploy:num_api_requests_waiting": "Places waited for before the engine.",
    "lmdeploy:num_api_requests_routed": "Places handed to the engine.",
    "lmdeploy:num_requests_succeeded": "Choices that ended by themselves or at their length.",
    "lmdeploy:num_requests_failed": "Choices that ended in an error, a timeout or an abort.",
    "lmdeploy:gpu_cache_usage_perc": "Share of KV cache blocks in use, 0 to 1.",
    "lmdeploy:prefix_cache_hit_rate": "Prompt tokens found in the cache, of all prompt tokens, 0 to 1.",
    "vllm:num_requests_running": "Choices the engine runs.",
    "vllm:num_requests_waiting": "Choices the engine holds in its queue.",
    "vllm:kv_cache_usage_perc": "Share of KV cache blocks in use, 0 to 1.",
}


class Metrics:
    """All figures of one server, in a registry of its own."""

    def __init__(self, model_name: str, max_model_tokens: int) -> None:
        self.registry = CollectorRegistry()
        self.succeeded = 0
        self.failed = 0
        self._labels = {"model_name": model_name, "engine": "0"}
        sizes = token_buckets(max_model_tokens)
        self._gauges = {
            name: Gauge(name, text, LABELS, registry=self.registry).labels(**self._labels)
            for name, text in GAUGES.items()
        }
        self.prompt_tokens = self._counters("prompt_tokens", "Prompt tokens.")
        self.generation_tokens = self._counters("generation_tokens", "Tokens drawn.")
        self.cached_tokens = self._counters("cached_tokens", "Prompt tokens found in the cache.")
        self.ttft_s = self._histograms("time_to_first_token_seconds", "Arrival to first token.", _FAST_S)
        self.itl_s = self._histograms("time_per_output_token_seconds", "Between two tokens of one answer.", _TOKEN_S)
        self.whole_s = self._histograms("e2e_request_latency_seconds", "Arrival to end.", _WHOLE_S)
        self.queue_s = self._histograms("request_queue_time_seconds", "Waiting for a place.", _WHOLE_S)
        self.prompt_sizes = self._histograms("request_prompt_tokens", "Prompt tokens of a request.", sizes)
        self.answer_sizes = self._histograms("request_generation_tokens", "Tokens drawn for a request.", sizes)
        self._finished = [
            Counter(f"{prefix}:request_success", "Ended choices by reason.", (*LABELS, "finished_reason"),
                    registry=self.registry)
            for prefix in ("lmdeploy", "vllm")
        ]
        self.unknown_fields = Counter(
            "tokenmill:unknown_fields", "Request fields that no schema knows.", LABELS, registry=self.registry
        ).labels(**self._labels)

    def _counters(self, name: str, text: str) -> list[Counter]:
        return [
            Counter(f"{prefix}:{name}", text, LABELS, registry=self.registry).labels(**self._labels)
            for prefix in ("lmdeploy", "vllm")
        ]

    def _histograms(self, name: str, text: str, buckets: tuple[float, ...]) -> list[Histogram]:
        return [
            Histogram(f"{prefix}:{name}", text, LABELS, registry=self.registry, buckets=buckets).labels(**self._labels)
            for prefix in ("lmdeploy", "vllm")
        ]

    def queued(self, arrived_s: float) -> float:
        """Seconds since `arrived_s`, noted as time in the queue."""
        waited_s = time.monotonic() - arrived_s
        _observe(self.queue_s, waited_s)
        return waited_s

    def finished(self, reason: Finish) -> None:
        if reason in (Finish.STOP, Finish.LENGTH):
            self.succeeded += 1
        else:
            self.failed += 1
        for counter in self._finished:
            counter.labels(**self._labels, finished_reason=reason.value).inc()

    def render(self, stats: Stats, routed: int, waiting: int) -> bytes:
        """The exposition text, with gauges as they are now."""
        used = 1.0 - stats.blocks_free / stats.blocks_total if stats.blocks_total else 0.0
        values = {
            "lmdeploy:num_requests_running": stats.running,
            "lmdeploy:num_requests_waiting": stats.waiting,
            "lmdeploy:num_api_requests_waiting": waiting,
            "lmdeploy:num_api_requests_routed": routed,
            "lmdeploy:num_requests_succeeded": self.succeeded,
            "lmdeploy:num_requests_failed": self.failed,
            "lmdeploy:gpu_cache_usage_perc": used,
            "lmdeploy:prefix_cache_hit_rate": stats.cached_tokens / max(stats.prompt_tokens, 1),
            "vllm:num_requests_running": stats.running,
            "vllm:num_requests_waiting": stats.waiting,
            "vllm:kv_cache_usage_perc": used,
        }
        for name, value in values.items():
            self._gauges[name].set(value)
        return generate_latest(self.registry)


@dataclass(slots=True)
class Timeline:
    """One choice as it goes by: feeds the histograms once per chunk and once at the end."""

    metrics: Metrics
    started_s: float = field(default_factory=time.monotonic)
    last_s: float | None = None
    finish: Finish = Finish.ABORT
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def saw(self, chunk: Chunk) -> None:
        if chunk.token_ids:
            self._saw_tokens(len(chunk.token_ids))
        if chunk.finish is not None:
            self.finish = chunk.finish
        if chunk.usage.prompt_tokens:
            self.prompt_tokens = chunk.usage.prompt_tokens
        if chunk.finish is not None:
            _add(self.metrics.cached_tokens, chunk.usage.cached_tokens)

    def _saw_tokens(self, count: int) -> None:
        now_s = time.monotonic()
        if self.last_s is None:
            _observe(self.metrics.ttft_s, now_s - self.started_s)
        else:
            _observe(self.metrics.itl_s, (now_s - self.last_s) / count)
        self.last_s = now_s
        self.answer_tokens += count

    def end(self) -> None:
        _observe(self.metrics.whole_s, time.monotonic() - self.started_s)
        _observe(self.metrics.prompt_sizes, self.prompt_tokens)
        _observe(self.metrics.answer_sizes, self.answer_tokens)
        _add(self.metrics.prompt_tokens, self.prompt_tokens)
        _add(self.metrics.generation_tokens, self.answer_tokens)
        self.metrics.finished(self.finish)


def _observe(histograms: list[Histogram], value: float) -> None:
    for histogram in histograms:
        histogram.observe(value)


def _add(counters: list[Counter], value: float) -> None:
    for counter in counters:
        counter.inc(value)
