"""Workloads have the peers' numbers; times follow from messages; a server's stream is counted right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tokenmill.bench import engine, report, serve, workload
from tokenmill.bench.timeline import Spread, Timeline, summarize
from tokenmill.errors import ConfigError, RequestError
from tokenmill.types import Finish, Request, StepOutput

# Counts and digests of the lists that the peers' script makes: [[ids, new tokens], ...] as JSON.
PEERS = {
    "static:16x128x512": (2048, 8192, "452affd93e0e60a4"),
    "trace:1000": (162446, 212737, "f97cf6fc09bbc8be"),
    "sampled:1000": (175278, 212065, "92fe2da395026a6e"),
    "prefill:64x1024": (65536, 64, "e844a28d3a523486"),
}


@pytest.mark.parametrize("name", PEERS)
def test_workloads_are_the_peers(name: str) -> None:
    (made,) = workload.parse(name)
    listed = json.dumps([[list(item.prompt_ids), item.new_tokens] for item in made.items])
    digest = hashlib.sha256(listed.encode()).hexdigest()[:16]
    assert (made.prompt_tokens, made.new_tokens, digest) == PEERS[name]
    assert made.temperature == (0.8 if name.startswith("sampled") else 0.0)


def test_standard_is_seven_cases() -> None:
    assert [w.name for w in workload.parse("standard")] == list(workload.STANDARD)


@pytest.mark.parametrize("text", ["static", "static:1x2", "trace:0", "trace:1x2", "prefill:9", "x:1", "static:axbxc"])
def test_a_bad_name_says_what_there_is(text: str) -> None:
    with pytest.raises(ConfigError, match="trace:COUNT"):
        workload.parse(text)


def test_small_models_get_what_fits() -> None:
    (made,) = workload.parse("trace:50", vocab_size=400, max_model_tokens=512)
    assert all(200 <= i < 400 for item in made.items for i in item.prompt_ids)
    assert all(len(item.prompt_ids) + item.new_tokens <= 512 for item in made.items)
    assert "of 50 fit" in made.name
    with pytest.raises(ConfigError, match="fits a context of 16"):
        workload.parse("static:1x128x512", max_model_tokens=16)


def line(sent: float, messages: list[tuple[float, int]], ended: float, error: str | None = None) -> Timeline:
    return Timeline(10, sent, messages, ended, error)


def test_times_follow_from_messages() -> None:
    found = summarize("x", [line(1.0, [(1.5, 1), (1.7, 2), (1.8, 1)], 1.9), line(0.0, [], 3.0, "broke")])
    assert (found.requests, found.failed, found.first_error, found.new_tokens) == (2, 1, "broke", 4)
    assert found.seconds == pytest.approx(3.0)
    assert found.ttft_ms.p50 == pytest.approx(500)
    # 100 ms twice (two tokens in 200 ms) and 100 ms once.
    assert (found.itl_ms.mean, found.itl_ms.p99) == (pytest.approx(100), pytest.approx(100))
    assert found.new_tokens_per_s == pytest.approx(4 / 3) and found.requests_per_s == pytest.approx(1 / 3)


def test_spread_equals_numpy() -> None:
    values = np.random.default_rng(0).random(500)
    found = Spread.of(values.tolist())
    assert found.p90 == pytest.approx(np.percentile(values, 90) * 1e3)
    assert Spread.of([]) == Spread(0.0, 0.0, 0.0, 0.0)


class CountingEngine:
    """Answers each request with its length; refuses the one whose prompt begins with 13."""

    def __init__(self) -> None:
        self.live = self.most = 0

    async def generate(self, request: Request) -> AsyncIterator[StepOutput]:
        if request.prompt_ids[0] == 13:
            raise RequestError("no")
        self.live += 1
        self.most = max(self.most, self.live)
        for n in range(request.stop.max_new_tokens):
            last = n + 1 == request.stop.max_new_tokens
            yield StepOutput((n,), Finish.LENGTH if last else None)
        self.live -= 1


async def test_an_engine_is_measured_and_a_failure_is_counted() -> None:
    items = (*workload.static(5, 4, 3), workload.Item((13,), 3))
    tested = CountingEngine()
    found = await engine.run_workload(tested, workload.Workload("w", items), concurrency=2)  # type: ignore[arg-type]
    assert (found.requests, found.failed, found.new_tokens, found.first_error) == (6, 1, 15, "no")
    assert tested.most <= 2


def sse(*events: dict[str, object]) -> bytes:
    return b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events) + b"data: [DONE]\n\n"


def test_load_is_a_poisson_process() -> None:
    assert not serve.arrivals_s(5, serve.Load()).any()
    when = serve.arrivals_s(4000, serve.Load(per_s=50.0))
    assert (np.diff(when) > 0).all() and when[-1] == pytest.approx(80, rel=0.1)


async def test_a_server_is_measured_by_its_own_count() -> None:
    asked: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(body)
        if len(asked) == 3:
            return httpx.Response(429, json={"message": "full"})
        text = [{"choices": [{"text": t}]} for t in ("a", "", "b")]
        return httpx.Response(200, content=sse(*text, {"choices": [], "usage": {"completion_tokens": 5}}))

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://x")
    made = workload.Workload("w", tuple(workload.static(3, 4, 5)))
    found = await serve.run_workload(client, made, "m", serve.Load(concurrency=1))
    assert (found.requests, found.failed, found.new_tokens) == (3, 1, 10)
    assert found.first_error is not None and found.first_error.startswith("429")
    assert asked[0]["prompt"] == list(made.items[0].prompt_ids) and asked[0]["ignore_eos"] is True


def test_a_report_is_json_lines_and_rows(tmp_path: Path) -> None:
    found = summarize("x", [line(1.0, [(1.5, 1)], 1.9)])
    report.append(tmp_path / "r.jsonl", [report.record(found, report.machine("cpu"))] * 2)
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["ttft_ms"]["p50"] == pytest.approx(500)
    assert len(report.row(found)) == len(report.HEADERS)
