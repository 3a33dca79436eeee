"""Peers in processes of their own: transformers on the built-in model, others by modules that stand in for them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tokenmill.api.hub import resolve_model
from tokenmill.bench.compare import OURS, Ledger, Rates, Run, Traffic, rows
from tokenmill.bench.peers import parent, servers
from tokenmill.bench.peers.contract import Job, Settings
from tokenmill.bench.serve import GENERATE, Load, open_client, run_workload
from tokenmill.bench.timeline import Timeline, summarize
from tokenmill.bench.workload import Item, Workload, parse, static
from tokenmill.cli.main import main

# A package that answers as vLLM's offline engine does; what it was given stands in the file `asked`.
VLLM = '''
import json, pathlib
__version__ = "9.9"
print("words on stdout, which are not the protocol's")
class SamplingParams:
    def __init__(self, **given): self.given = given
class _Answer:
    def __init__(self, count): self.outputs = [type("Output", (), {"token_ids": [5] * count})]
class LLM:
    def __init__(self, **given):
        self.file = pathlib.Path(__file__).with_name("asked"); self.file.write_text(json.dumps(given) + "\\n")
    def generate(self, prompts, wanted, use_tqdm):
        with self.file.open("a") as file:
            file.write(json.dumps([[p["prompt_token_ids"], w.given] for p, w in zip(prompts, wanted)]) + "\\n")
        return [_Answer(w.given["max_tokens"]) for w in wanted]
'''
LMDEPLOY = {
    "__init__.py": '__version__ = "8.8"\n',
    "messages.py": "class TurbomindEngineConfig(dict): pass\nclass GenerationConfig(dict): pass\n",
    "turbomind.py": '''
import asyncio
class _Output:
    def __init__(self, ids): self.token_ids = ids
class _Instance:
    live = most = 0
    async def async_stream_infer(self, number, input_ids, gen_config, stream_output):
        _Instance.live += 1
        assert _Instance.live <= 2, "more than max_batch_size at once"
        assert gen_config["ignore_eos"] and gen_config["top_k"] == 1
        for _ in range(gen_config["max_new_tokens"]):
            await asyncio.sleep(0.001)
            yield _Output([len(input_ids)])
        _Instance.live -= 1
class TurboMind:
    @classmethod
    def from_pretrained(cls, model, engine_config):
        assert engine_config["quant_policy"] == 8 and engine_config["max_batch_size"] == 2, engine_config
        return cls()
    def create_instance(self): return _Instance()
''',
}


def package(folder: Path, name: str, files: dict[str, str]) -> Path:
    (folder / name).mkdir(parents=True)
    for file, text in files.items():
        (folder / name / file).write_text(text, encoding="utf-8")
    return folder


def job(engine: str, settings: Settings, *workloads: str) -> Job:
    made = tuple(w for name in workloads for w in parse(name, 1000))
    return Job(engine, settings, made, tuple(static(2, 4, 3, vocab_size=1000)))


def test_a_job_arrives_as_it_was_sent() -> None:
    sent = job("vllm", Settings("m", kv="fp8"), "static:2x3x4", "sampled:3")
    assert Job.decode(sent.encode()) == sent


def test_vllm_is_given_our_requests_and_settings(tmp_path: Path) -> None:
    folder = package(tmp_path, "vllm", {"__init__.py": VLLM})
    settings = Settings("folder", "float16", "fp8", 0.7, 64, 4096)
    told = parent.run_job(job("vllm", settings, "static:3x8x5", "sampled:2"), folder, 600)
    assert (told.failure, told.version) == ("", "9.9")
    assert [(s.requests, s.failed, s.prompt_tokens, s.new_tokens) for s in told.summaries][0] == (3, 0, 24, 15)
    # A request is told of at its end: no time of a first token may be made of that.
    assert told.summaries[0].ttft_ms.p50 == told.summaries[0].itl_ms.p50 == 0.0 and told.summaries[0].seconds > 0
    given, _, plain, drawn = [json.loads(line) for line in (folder / "vllm" / "asked").read_text().splitlines()]
    wanted = {"model": "folder", "dtype": "float16", "max_model_len": 4096, "gpu_memory_utilization": 0.7,
              "max_num_seqs": 64, "kv_cache_dtype": "fp8", "enable_prefix_caching": False}  # fmt: skip
    assert wanted.items() <= given.items()
    assert [ids for ids, _ in plain] == [list(i.prompt_ids) for i in static(3, 8, 5, vocab_size=1000)]
    assert all(w["ignore_eos"] and w["temperature"] == 0 and w["max_tokens"] == 5 for _, w in plain)
    assert all(w["temperature"] == 0.8 and w["top_p"] == 0.8 for _, w in drawn)


def test_lmdeploy_keeps_to_its_rows_and_streams(tmp_path: Path) -> None:
    folder = package(tmp_path, "lmdeploy", LMDEPLOY)
    told = parent.run_job(job("lmdeploy", Settings("folder", kv="int8", max_rows=2), "static:5x8x4"), folder, 600)
    assert (told.failure, told.version) == ("", "8.8")
    (found,) = told.summaries
    assert (found.requests, found.failed, found.new_tokens) == (5, 0, 20)
    assert found.itl_ms.p50 >= 1.0
    # The fifth request waits until two have made their four steps of a millisecond, and the wait counts.
    assert found.total_ms.p99 >= 12.0 and found.ttft_ms.p99 >= 8.0


def test_failures_are_told_and_nothing_is_left_running(tmp_path: Path) -> None:
    missing = parent.run_job(job("lmdeploy", Settings("m"), "static:1x2x2"), None, 600)
    assert "lmdeploy cannot be imported" in missing.failure and "--peer-path" in missing.failure
    refused = parent.run_job(job("vllm", Settings("m", kv="int4"), "static:1x2x2"), broken(tmp_path / "a", ""), 600)
    assert "vllm has no KV cache like 'int4'; it has auto, fp8" in refused.failure
    died = broken(tmp_path / "b", "import os, sys; sys.stderr.write('out of memory'); sys.stderr.flush(); os._exit(7)")
    assert parent.run_job(job("vllm", Settings("m"), "static:1x2x2"), died, 600).failure == (
        "ended with code 7: out of memory"
    )
    began = time.monotonic()
    hangs = broken(tmp_path / "c", "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)")
    late = parent.run_job(job("vllm", Settings("m"), "static:1x2x2"), hangs, 3)
    assert late.failure.startswith("stopped after 3 s") and time.monotonic() - began < 50


def broken(folder: Path, text: str) -> Path:
    return package(folder, "vllm", {"__init__.py": f"__version__ = '0'\n{text}\n"})


def test_transformers_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.jsonl"
    command = ["bench", "engine", "demo", "--device", "cpu", "--workload", "static:2x16x8", "trace:3", "--session-len",
               "512", "--ceilings", "--peer", "transformers", "--output-file", str(file)]  # fmt: skip
    assert main(command) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["engine"] for line in lines] == [OURS, OURS, "transformers", "transformers"]
    counts = [(line["case"], line["requests"], line["failed"], line["new_tokens"]) for line in lines]
    assert counts[:2] == counts[2:] and counts[0] == ("static:2x16x8", 2, 0, 16)
    assert lines[2]["ttft_ms"]["p50"] > 0 and lines[2]["version"]
    # Ceilings and runs were measured at different times of a machine that others use: which share is larger, not how
    # large it is, is a fact.
    assert lines[0]["read_share"] > 0 and lines[0]["copy_share"] > 0 and "read_share" not in lines[1]
    shown = capsys.readouterr().out
    ratio = lines[0]["new_tokens_per_s"] / lines[2]["new_tokens_per_s"]
    assert f"{ratio:.2f}x" in shown and "of read" in shown


def test_the_transformers_peer_says_what_transformers_says(tmp_path: Path) -> None:
    """Padding, masks and the streamer change no token: the tokens of every row are those of the row alone."""
    import torch
    from transformers import GenerationConfig

    from tokenmill.bench.peers.engines.transformers import Peer

    peer = Peer()
    peer.load()
    peer.start(Settings(str(resolve_model("demo")), device="cpu", max_rows=2))
    said: list[list[int]] = []
    whole = peer.model.generate

    def kept(*args: object, **given: object) -> torch.Tensor:
        made: torch.Tensor = whole(*args, **given)
        said.extend(made.tolist())
        return made

    items = tuple(Item(tuple(range(300, 300 + length)), new) for length, new in ((9, 4), (5, 7), (12, 3)))
    alone = [
        whole(
            torch.tensor([item.prompt_ids]),
            generation_config=GenerationConfig(max_new_tokens=item.new_tokens, eos_token_id=[], pad_token_id=0),
        )[0].tolist()
        for item in items
    ]
    peer.model.generate = kept
    lines = peer.run(Workload("w", items))
    assert [line.new_tokens for line in lines] == [4, 7, 3]
    # The second batch is sent with the first and waits for it.
    assert lines[2].ttft_s > lines[1].ttft_s and lines[2].sent_s == lines[0].sent_s
    for row, wanted, item in zip(said, alone, items, strict=True):
        width = 9 if item is not items[2] else 12
        assert row[width - len(item.prompt_ids) :][: len(wanted)] == wanted


def test_startup_phases_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.jsonl"
    assert main(["bench", "startup", "demo", "--device", "cpu", "--output-file", str(file)]) == 0
    (line,) = [json.loads(text) for text in file.read_text().splitlines()]
    assert list(line["phases_s"]) == ["interpreter", "imports", "model", "first token"]
    assert min(line["phases_s"].values()) > 0 and sum(line["phases_s"].values()) == pytest.approx(line["first_token_s"])
    assert {"weights", "cache", "graphs"} <= set(line["inside_s"])
    assert sum(line["inside_s"].values()) <= line["phases_s"]["model"] + 0.05
    assert "process start to first token" in capsys.readouterr().out


async def test_both_routes_count_the_same(tmp_path: Path) -> None:
    """Our server has LMDeploy's route too, so it stands for LMDeploy's server."""
    settings = Settings(str(resolve_model("demo")), device="cpu", max_rows=4)
    workload = Workload("w", tuple(static(3, 8, 6, vocab_size=1000)))
    with servers.serving(OURS, settings, None, 600) as served:
        async with open_client(served.url) as client:
            loads = [Load(route=route) for route in (served.route, GENERATE)]
            found = [await run_workload(client, workload, settings.model, load) for load in loads]
    assert [(f.failed, f.new_tokens, f.prompt_tokens) for f in found] == [(0, 18, 24)] * 2
    assert all(f.itl_ms.p50 > 0 for f in found)


def test_servers_get_the_same_settings() -> None:
    settings = Settings("folder", "float16", "auto", 0.5, 128, 4096)
    for engine, flag in ((OURS, "--max-batch-size"), ("lmdeploy", "--max-batch-size"), ("vllm", "--max-num-seqs")):
        words, _ = servers.command(engine, settings, 7000)
        pairs = dict(zip(words, words[1:], strict=False))
        assert (pairs[flag], pairs["--dtype"]) == ("128", "float16") and "7000" in words and "4096" in words


def test_serve_needs_one_server(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["localhost:1", "--start", "demo"], ["localhost:1", "--peer", "vllm"]):
        assert main(["bench", "serve", *words]) == 2
        assert "--start MODEL" in capsys.readouterr().err


def run_of(engine: str, case: str, seconds: float, tokens: int) -> Run:
    return Run(engine, summarize(case, [Timeline(10, 0.0, [(seconds, tokens)], seconds)]))


def test_ratios_and_shares_are_arithmetic(tmp_path: Path) -> None:
    """batch 1, 10 in, 4 out: four reads of the weights, contexts of 10, 11, 12, 13 tokens."""
    traffic = Traffic.of(
        {"weights_bytes": 1000, "dtype": "float16", "token_bytes": 3},
        {"vocab_size": 20, "hidden_size": 5, "tie_word_embeddings": False},
    )
    assert traffic == Traffic(800, 3) and Traffic.of({}, {}) is None
    case = "static:1x10x4"
    runs = [run_of(OURS, case, s, 4) for s in (1.0, 2.0, 4.0)] + [run_of("vllm", case, 4.0, 4)]
    moved = 4 * 800 + (10 + 11 + 12 + 13) * 3
    assert traffic.bytes_per_s(runs[1].summary) == pytest.approx(moved / 2)
    ours, theirs = rows(runs, traffic, Rates(copy=moved, read=moved * 2))
    assert (ours[1:3], ours[-3:]) == ((OURS, "2.0"), ("", "25%", "50%"))
    assert (theirs[1:3], theirs[-3:]) == (("vllm", "1.0"), ("2.00x", "12%", "25%"))
    assert traffic.bytes_per_s(run_of(OURS, "trace:4", 1.0, 4).summary) is None
    ledger = Ledger({"machine": "m"}, tmp_path / "f", traffic, Rates(moved, moved))
    ledger.add("vllm", runs[1].summary, "1")
    (line,) = (tmp_path / "f").read_text().splitlines()
    kept = json.loads(line)
    assert (kept["engine"], kept["version"], kept["machine"], kept["read_share"]) == ("vllm", "1", "m", 0.5)
