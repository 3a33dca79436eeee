"""`serve gradio` driven by gradio's own client: question, streamed answer, reset, errors, and no foreign address."""

from __future__ import annotations

import re
import signal
import subprocess
import time

import httpx
import pytest
from tests.support.commands import COMMAND, environment, run

from tokenmill.api.ports import free_port

pytest.importorskip("gradio", reason="needs gradio (the extra ui)")
from gradio_client import Client


def test_a_conversation_with_the_demo_model() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*COMMAND, "serve", "gradio", "demo", "--server-name", "127.0.0.1", "--server-port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        wait(process, url)
        page = httpx.get(url).text
        assert "Tokenmill Playground" in page and not re.search(r"(src|href)=\"https?://(?!127\.)", page)
        client = Client(url, verbose=False)
        box, talk = client.predict("What is 12 + 30?", [], api_name="/say")
        job = client.submit(talk, 32, 0.8, 0.01, api_name="/answer")
        answered = job.result(timeout=300)
        assert not box and [turn["role"] for turn in answered] == ["user", "assistant"]
        assert "12 + 30" in answered[1]["content"][0]["text"] and len(job.outputs()) > 3
        assert client.predict(api_name="/reset") == []
        process.send_signal(signal.SIGTERM)
        said, told = process.communicate(timeout=300)
        assert process.returncode == 0 and f"chat with demo at {url}" in said and "Traceback" not in told, told
    finally:
        process.kill()
        process.communicate()


def wait(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    pytest.fail(f"no page at {url} after 300 s")


def test_a_server_that_is_none_is_one_line() -> None:
    done = run("serve", "gradio", "http://127.0.0.1:1")
    assert done.returncode == 5 and done.stderr.startswith("error: no server answers") and done.stderr.count("\n") == 1
