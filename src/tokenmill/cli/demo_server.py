"""The demo's servers: processes of their own on free loopback ports, asked through the `openai` client, then ended.

The 4-bit copy is served beside its source, with a 4-bit KV cache.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenmill.api.ports import free_port
from tokenmill.errors import ConfigError, EngineDeadError

START_S, END_S, POLL_S = 300.0, 60.0, 0.1
QUESTION = {"role": "user", "content": "What is 35 + 24?"}
W4 = "w4-int4kv"
BESIDE = ("What is 27 + 48?", "你好，请介绍一下你自己。")
STREAMED = {"role": "user", "content": "写一个300字的童话故事"}


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    import httpx

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineDeadError(f"the server ended with {process.returncode} before it was ready")
        try:
            if httpx.get(f"{url}/health/ready", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(POLL_S)
            continue
        time.sleep(POLL_S)
    raise EngineDeadError(f"the server was not ready after {START_S:.0f} s")


@contextmanager
def server(model: str, *flags: str) -> Iterator[str]:
    """The address of a running server; it is told to drain at the end and must end with 0."""
    port = free_port()
    command = [sys.executable, "-m", "tokenmill", "serve", "api_server", model]
    command += ["--server-name", "127.0.0.1", "--server-port", str(port), *flags]
    print(f"$ tokenmill {' '.join(command[3:])}", flush=True)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        started = time.perf_counter()
        wait_until_ready(process, f"http://127.0.0.1:{port}")
        print(f"ready after {time.perf_counter() - started:.1f} s")
        yield f"http://127.0.0.1:{port}/v1"
        process.send_signal(signal.SIGTERM)
        code = process.wait(END_S)
        print(f"SIGTERM: the server ended with {code}")
        if code:
            raise EngineDeadError(f"the server ended with {code} after SIGTERM; it should end with 0")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# Clients are Any: the openai package's overloads want its own typed records for what are plain dicts here.
def ask(client: Any, name: str) -> None:
    done = client.chat.completions.create(model=name, messages=[QUESTION], temperature=0)
    print(f"\nuser: {QUESTION['content']}\n{name}: {done.choices[0].message.content}")
    print(f"[finish_reason {done.choices[0].finish_reason}, {done.usage.completion_tokens} tokens]")


def ask_streaming(client: Any, name: str) -> None:
    """Prints an answer as it comes, with its TTFT and rate as a client sees them."""
    print(f"\nuser: {STREAMED['content']}\n{name}: ", end="", flush=True)
    started = time.perf_counter()
    first, tokens = 0.0, 0
    events = client.chat.completions.create(
        model=name, messages=[STREAMED], temperature=0.8, top_p=0.8, seed=7, max_tokens=512, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    for event in events:
        tokens = event.usage.completion_tokens if event.usage else tokens
        text = event.choices[0].delta.content if event.choices else None
        if text:
            first = first or time.perf_counter()
            print(text, end="", flush=True)
    rate = (tokens - 1) / max(time.perf_counter() - first, 1e-9)
    print(f"\n[streamed: TTFT {(first - started) * 1e3:.0f} ms, {tokens} tokens, {rate:.0f} tokens/s]")


def show_server(model: str, copy: Path | None = None) -> None:
    """Starts a server for `model`, asks it both ways, and its quantized copy beside it; ends them."""
    try:
        import openai
    except ImportError:
        raise ConfigError("the demo asks through the openai client: pip install 'tokenmill[serve]'") from None
    with server(model) as url:
        client = openai_client(url)
        name = client.models.list().data[0].id
        print(f"openai {openai.__version__}: models.list().data[0].id is {name!r}")
        ask(client, name)
        ask_streaming(client, name)
        if copy is not None:
            show_beside(client, name, copy)


def openai_client(url: str) -> Any:
    """Past any proxy that the environment names: the server is on this machine."""
    import openai

    return openai.OpenAI(base_url=url, api_key="none", http_client=openai.DefaultHttpxClient(trust_env=False))


def show_beside(client: Any, name: str, copy: Path) -> None:
    """The same questions to both servers, answers side by side."""
    print("\nThe 4-bit copy with a 4-bit KV cache, beside it:")
    with server(str(copy), "--quant-policy", "4", "--model-name", W4) as url:
        beside = openai_client(url)
        for question in BESIDE:
            print(f"user: {question}")
            for asked, shown in ((client, name), (beside, W4)):
                print(f"{shown}: {one_answer(asked, shown, question)}")


def one_answer(client: Any, name: str, question: str) -> str:
    """The greedy answer with its rate."""
    started = time.perf_counter()
    done = client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=96
    )
    rate = done.usage.completion_tokens / max(time.perf_counter() - started, 1e-9)
    return f"{done.choices[0].message.content} [{done.usage.completion_tokens} tokens, {rate:.0f} tokens/s]"
