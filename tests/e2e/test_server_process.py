"""The server as a process, by its command line: first lines, health, the tutorial's requests, load, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from tests.support.http_server import PATIENCE_S, wait_for
from tests.support.server_process import ROOT, ServerProcess, echo_server
from tests.support.timing import best

NAME = "internlm-chat-7b"
TUTORIAL = (
    '{"model":"internlm-chat-7b","messages":"写一个300字的童话故事","temperature":0.7,"top_p":1,"n":1,'
    '"max_tokens":512,"stop":false,"stream":false,"presence_penalty":0,"frequency_penalty":0,"user":"string",'
    '"repetition_penalty":1,"renew_session":false,"ignore_eos":false}'
)
# What readers of the tutorial paste, unmodified but for the address.
SCRIPT = """
import sys
from openai import OpenAI
client = OpenAI(api_key='YOUR_API_KEY', base_url=sys.argv[1])
model_name = client.models.list().data[0].id
response = client.chat.completions.create(
    model=model_name,
    messages=[
        {"role": "system", "content": "你是一个友好的小助手，负责解决问题."},
        {"role": "user", "content": "给我讲一个关于狐狸和西瓜的小故事"},
    ],
    temperature=0.8,
    top_p=0.8,
    max_tokens=60,
)
print(response.choices[0].message.content)
stream = client.chat.completions.create(
    model=model_name, messages=[{"role": "user", "content": "abc"}], stream=True, max_tokens=6)
print("".join(chunk.choices[0].delta.content or "" for chunk in stream))
import openai
print(openai.__version__)
"""
STORY = "给我讲一个关于狐狸和西瓜的小故事"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with echo_server("--model-name", NAME) as process:
        yield process


def test_first_lines_and_cost_of_starting(server: ServerProcess) -> None:
    assert len(server.lines) == 4 and all(line.startswith("HINT:") for line in server.lines[:3])
    assert len(set(server.lines[:3])) == 1 and server.url in server.lines[0] and "browser" in server.lines[0]
    assert server.lines[3].startswith("auth: OFF")
    used = psutil.Process(server.process.pid).cpu_times()
    # Ready within 6 s of one core; what a shared machine adds to that is not ours.
    assert used.user + used.system < 6.0


def test_health_metrics_and_pages(server: ServerProcess) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/version"):
        assert httpx.get(server.url + path, timeout=PATIENCE_S).status_code == 200, path
    assert "lmdeploy:num_requests_running" in httpx.get(server.url + "/metrics", timeout=PATIENCE_S).text
    page = httpx.get(server.url + "/", timeout=PATIENCE_S)
    assert page.headers["content-type"].startswith("text/html")
    # Nothing is loaded from anywhere else.
    assert not re.search(r"https?://", page.text)
    assert NAME in httpx.get(server.url + "/v1/models", timeout=PATIENCE_S).text


def test_the_tutorials_post_as_typed(server: ServerProcess) -> None:
    reply = httpx.post(
        server.url + "/v1/chat/completions", content=TUTORIAL.encode(), headers={"Content-Type": "application/json"},
        timeout=PATIENCE_S,
    )
    assert reply.status_code == 200
    body = reply.json()
    assert body["model"] == NAME and body["choices"][0]["message"]["content"].startswith("写一个300字的童话故事")
    assert body["usage"]["completion_tokens"] == 512


def run_tutorial(server: ServerProcess, packages: str | None) -> list[str]:
    environment = os.environ | ({"PYTHONPATH": packages} if packages else {})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, server.url + "/v1"],
        capture_output=True, text=True, timeout=600, env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_the_tutorials_script_with_todays_client(server: ServerProcess) -> None:
    story, stream, version = run_tutorial(server, None)
    assert STORY.startswith(story[:16]) and stream == "abcabc" and version == openai.__version__


def test_the_tutorials_script_with_the_client_of_its_time(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("openai-1.40.3")
    wanted = ["openai==1.40.3", "httpx==0.27.2", "distro", "jiter", "sniffio", "tqdm"]
    try:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *wanted],
            check=True, capture_output=True, timeout=60,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("openai 1.40.3 could not be fetched")
    line = [sys.executable, "-W", "ignore", "-c", "import openai; openai.OpenAI(api_key='x')"]
    if subprocess.run(line, capture_output=True, env=os.environ | {"PYTHONPATH": str(folder)}).returncode:
        pytest.skip("openai 1.40.3 does not start beside today's packages")
    story, stream, version = run_tutorial(server, str(folder))
    assert STORY.startswith(story[:16]) and stream == "abcabc" and version == "1.40.3"


def test_64_clients_of_whom_30_leave_and_a_sigterm_among_the_rest() -> None:
    """On the real scheduler and block pool: what stays is as it would be alone, and nothing of the others is left."""
    command = [sys.executable, "-m", "tests.support.echo_server", "blocks", "serve", "api_server", "demo"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "soak.py"), "--", *command],
        capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["whole"], report["killed"], report["left_queue"]) == (34, 20, 10)
    assert (report["answers_after_sigterm"], report["exit"]) == (32, 0)


def test_a_second_signal_ends_at_once_and_says_so() -> None:
    """A second, and what a crowded machine adds; the answer would take three minutes and the drain one."""
    assert best(seconds_after_the_second_signal, 10) < 10


def seconds_after_the_second_signal() -> float:
    with echo_server(engine="echo:5") as server, httpx.Client(timeout=PATIENCE_S) as client:
        body = {"model": "demo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1000, "stream": True}
        with client.stream("POST", server.url + "/v1/chat/completions", json=body) as reply:
            reading = reply.iter_lines()
            next(reading)
            server.process.send_signal(signal.SIGINT)
            wait_for(lambda: httpx.get(server.url + "/health/ready", timeout=PATIENCE_S).status_code == 503)
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            assert server.process.wait(PATIENCE_S) == 1
            return time.monotonic() - started


def test_sigterm_with_nothing_to_do_ends_at_once_with_0() -> None:
    with echo_server() as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S / 2) == 0


def test_an_address_in_use_is_one_line_and_an_exit_code(server: ServerProcess) -> None:
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "tests.support.echo_server", "echo", "serve", "api_server", "demo",
               "--server-name", "127.0.0.1", "--server-port", port]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: cannot listen on") and "--server-port" in line


def test_keys_from_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("from-a-file\n")
    monkeypatch.setenv("TOKENMILL_API_KEYS", "from-env, other")
    with echo_server("--api-keys-file", str(tmp_path / "keys")) as server:
        assert server.lines[3] == "auth: ON (3 keys)"
        assert "from-a" not in " ".join(psutil.Process(server.process.pid).cmdline())
        for key, status in (("from-a-file", 200), ("from-env", 200), ("other", 200), ("wrong", 401)):
            reply = httpx.get(server.url + "/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S)
            assert reply.status_code == status
