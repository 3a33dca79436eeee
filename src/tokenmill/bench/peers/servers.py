"""Servers of a model, ours and peers', each started in a session of its own and ended after its measurement.

Prompts are token ids, so each server is asked by the route of it that takes them (`Load.route`).
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tokenmill.api.ports import free_port
from tokenmill.bench.compare import OURS
from tokenmill.bench.peers.contract import Settings
from tokenmill.bench.peers.parent import Process, last_words, started
from tokenmill.bench.serve import COMPLETIONS, GENERATE
from tokenmill.errors import ConfigError, RequestError

LMDEPLOY_KV = {"auto": "0", "int4": "4", "int8": "8"}


@dataclass(frozen=True, slots=True)
class Served:
    """A server and what takes token ids there. `engine`: whose it is, where it was started for a measurement."""

    engine: str
    url: str
    route: str


def command(engine: str, settings: Settings, port: int) -> tuple[list[str], str]:
    """The command line of a server, and the route for token ids."""
    made = {OURS: _ours, "lmdeploy": _lmdeploy, "vllm": _vllm}.get(engine)
    if made is None:
        raise ConfigError(f"{engine} has no server to compare with here; bench engine compares with it")
    return made(settings, str(port))


def _common(settings: Settings) -> list[str]:
    """LMDeploy's flags, which are ours too."""
    context = ["--session-len", str(settings.max_model_tokens)] if settings.max_model_tokens else []
    return [
        "--max-batch-size", str(settings.max_rows), "--cache-max-entry-count", str(settings.memory_frac),
        "--tp", str(settings.tp), "--dtype", settings.dtype, *context,
    ]  # fmt: skip


def _ours(settings: Settings, port: str) -> tuple[list[str], str]:
    words = ["-m", "tokenmill", "serve", "api_server", settings.model, "--server-name", "127.0.0.1", "--server-port"]
    flags = ["--quant-policy", settings.kv, "--device", settings.device, "--enable-prefix-caching", "false"]
    return [sys.executable, *words, port, *_common(settings), *flags], COMPLETIONS


def _lmdeploy(settings: Settings, port: str) -> tuple[list[str], str]:
    if settings.kv not in LMDEPLOY_KV:
        raise ConfigError(f"lmdeploy has no KV cache like {settings.kv!r}; it has {', '.join(LMDEPLOY_KV)}")
    words = ["-m", "lmdeploy", "serve", "api_server", settings.model, "--server-name", "127.0.0.1", "--server-port"]
    flags = ["--quant-policy", LMDEPLOY_KV[settings.kv], "--backend", "turbomind", "--log-level", "ERROR"]
    return [sys.executable, *words, port, *_common(settings), *flags], GENERATE


def _vllm(settings: Settings, port: str) -> tuple[list[str], str]:
    if settings.kv not in ("auto", "fp8"):
        raise ConfigError(f"vllm has no KV cache like {settings.kv!r}; it has auto, fp8")
    context = ["--max-model-len", str(settings.max_model_tokens)] if settings.max_model_tokens else []
    words = ["-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", port]
    flags = [
        "--model", settings.model, "--dtype", settings.dtype, "--kv-cache-dtype", settings.kv,
        "--max-num-seqs", str(settings.max_rows),
        "--gpu-memory-utilization", str(settings.memory_frac), "--tensor-parallel-size", str(settings.tp),
        "--no-enable-prefix-caching", "--disable-log-stats",
    ]  # fmt: skip
    return [sys.executable, *words, *flags, *context], COMPLETIONS


@contextlib.contextmanager
def serving(engine: str, settings: Settings, packages: Path | None, limit_s: float) -> Iterator[Served]:
    """A server that is ready. Raises RequestError with its last words where it ends or is late."""
    port = free_port()
    line, route = command(engine, settings, port)
    url = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words,
        started(line, engine, packages, words, output=words) as process,
    ):
        if not _ready(url, process, time.monotonic() + limit_s):
            state = f"ended with code {process.returncode}" if process.poll() is not None else "is not ready"
            raise RequestError(f"{engine}'s server {state} within {limit_s:g} s: {last_words(words)}", 503)
        yield Served(engine, url, route)


def _ready(url: str, process: Process, deadline: float) -> bool:
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/v1/models", timeout=5, trust_env=False).status_code == 200:
                return True
        time.sleep(0.2)
    return False
