#!/usr/bin/env python3
"""Runs the command lines of LMDeploy's tutorials as typed, with `tokenmill`, and writes docs/tutorials.md.

    python scripts/tutorials.py             every row, about five minutes of one core; writes the page
    python scripts/tutorials.py --fast      the rows that CI runs, calibrated on four short windows; prints only

Each runs in a process of its own, in a folder that holds random checkpoints of the named families under the tutorials'
names (the first is the demo model), with a local hub cache and no network. A server is asked whether it is ready, then
the rows of its clients run, then it is told to end. A question is typed into every chat. Port 23333 must be free. Exit
code 1 where a row fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.api.hub import resolve_model
from tokenmill.cli.demo_server import wait_until_ready
from tokenmill.cli.main import main as tokenmill
from tokenmill.errors import EngineDeadError
from tokenmill.models.tiny import make_tiny
from tokenmill.serve.ui.terminal import PROMPT

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorials.md"
# The tutorials' own ports; a test puts free ones in their place, as others may hold these on its machine.
PORTS = {"23333": 23333, "6006": 6006}
# Greedy, so that a run's lines are the next run's too.
SETTINGS = ("/set temperature 0", "/set max_new_tokens 24")
TYPED = "\n".join((*SETTINGS, "Hello! What is 12 + 30?", "", "exit", ""))
CONFIG_INI = Path("workspace/triton_models/weights/config.ini")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = (("--calib-samples 128", "--calib-samples 4"), ("seqlen 1024", "seqlen 64"), ("seqlen 2048", "seqlen 64"))
TIMEOUT_S = 600
NO_GRADIO = "needs gradio: pip install"


@dataclass(frozen=True)
class Row:
    """`edits` are made to config.ini first; `clients` run while this, a server, is up."""

    command: str
    fast: bool = False
    edits: dict[str, str] = field(default_factory=dict)
    clients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    command: str
    code: int
    line: str

    @property
    def ok(self) -> bool:
        return self.code == 0 or (NO_GRADIO in self.line and self.code == 2)


OPEN = "--server-name 0.0.0.0 --server-port 23333 --tp 1"
CLIENT = "serve api_client http://localhost:23333"
GRADIO = "serve gradio http://localhost:23333 --server-name 0.0.0.0 --server-port 6006"
MATH, CHAT, SEES = "internlm2-math-plus-7b", "internlm2_5-7b-chat", "InternVL2-26B"
# The tutorials in order: each needs what the rows before it made.
ROWS = (
    Row(f"lite auto_awq {MATH} --calib-dataset 'ptb' --calib-samples 128 --calib-seqlen 1024 --w-bits 4 "
        f"--w-group-size 128 --work-dir {MATH}-4bit", fast=True),
    Row(f"chat {MATH}-4bit --model-format awq --cache-max-entry-count 0.5", fast=True),
    Row(f"chat {MATH} --cache-max-entry-count 0.4"),
    Row(f"serve api_server {MATH}-4bit --model-format awq --cache-max-entry-count 0.4 {OPEN}", clients=(CLIENT,)),
    Row("chat turbomind internlm/internlm-chat-20b-4bit --model-name internlm-chat-20b", fast=True),
    Row("chat turbomind Qwen/Qwen-7B-Chat --model-name qwen-7b"),
    Row("chat turbomind internlm-chat-7b --model-name internlm-chat-7b"),
    Row("convert internlm-chat-7b internlm-chat-7b", fast=True),
    Row("chat turbomind ./workspace", fast=True),
    Row("serve api_server ./workspace --server_name 0.0.0.0 --server_port 23333 --instance_num 64 --tp 1", fast=True,
        clients=(CLIENT, GRADIO)),
    Row("serve api_server ./workspace --server_name 0.0.0.0 --server_port 23333 --instance_num 64 --tp 1",
        edits={"quant_policy": "4", "rope_scaling_factor": "1.0", "use_logn_attn": "1", "max_batch_size": "16"}),
    Row(f"serve api_server {CHAT} --model-format hf --quant-policy 0 --cache-max-entry-count 0.4 {OPEN}"),
    Row(f"serve api_server {CHAT} --model-format hf --quant-policy 4 --cache-max-entry-count 0.1 {OPEN}",
        clients=(CLIENT, GRADIO)),
    Row(f"serve api_server {CHAT} {OPEN}"),
    Row(f"lite auto_awq {CHAT} --calib-dataset 'ptb' --calib-samples 128 --calib-seqlen 2048 --w-bits 4 "
        f"--w-group-size 128 --batch-size 1 --search-scale False --work-dir {CHAT}-4bit"),
    Row(f"serve api_server {CHAT}-4bit --model-format awq --quant-policy 4 --cache-max-entry-count 0.4 {OPEN}"),
    Row(f"lite auto_awq {SEES} --calib-dataset 'ptb' --calib-samples 128 --calib-seqlen 2048 --w-bits 4 "
        f"--w-group-size 128 --batch-size 1 --search-scale False --work-dir {SEES}-4bit"),
    Row(f"serve api_server {SEES}-4bit --model-format awq --quant-policy 0 --cache-max-entry-count 0.6 {OPEN}"),
    Row(f"serve api_server {SEES} --model-format hf --quant-policy 4 --cache-max-entry-count 0.6 {OPEN}"),
    Row("lite auto_awq internlm-chat-7b internlm-chat-7b-4bit --w_bits 4 --w_sym False --w_group_size 128 "
        "--device cpu --calib-samples 128 --calib-seqlen 1024"),
    Row("serve gradio demo --server-name 0.0.0.0 --server-port 6006"),
    Row("check_env"),
    Row("list --engine turbomind"),
)  # fmt: skip
FOLDERS = {CHAT: "internlm2", SEES: "internvl", "internlm-chat-7b": "internlm"}
HEAD = """# LMDeploy's tutorials, as typed

Written by `scripts/tutorials.py` from its own runs; do not edit. Every command line of the tutorials of three
generations of LMDeploy, with `tokenmill` in place of `lmdeploy`, in folders (or a local hub cache) with the tutorials'
names, on a CPU. `internlm2-math-plus-7b` holds the demo model; the others are random checkpoints of the named families,
whose answers mean nothing. {note}

"""
FOOT = """
- A row with `↳` ran while the server above it was up; exit 0 of a server means that it was ready, and ended on SIGTERM.
- `config.ini`: the row's edits were made by hand first, as its tutorial says.
- Hub names lie in a local hub cache, `internlm-chat-20b-4bit` in LMDeploy's own form of 2023 (a `turbomind` object).
- The Swagger page with a text as `messages`, and the `openai` script, are in `tests/e2e/test_tutorials.py`.
- CI runs the rows of `--fast`: `tests/e2e/test_tutorial_table.py`.
"""
WITHOUT_GRADIO = "gradio is not installed here: its rows say how to install it, and count as passed."


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true")
    fast = parser.parse_args(words).fast
    with tempfile.TemporaryDirectory() as place:
        lines, failed = [], 0
        for seen, mark in run_rows(Path(place), fast):
            failed += not seen.ok
            lines.append(f"| {mark}`{seen.command}` | {seen.code} | {seen.line} |")
            print(lines[-1], flush=True)
    if not fast:
        note = WITHOUT_GRADIO if any(NO_GRADIO in line for line in lines) else ""
        table = ["| command | exit | first line |", "|---|---|---|", *lines]
        PAGE.write_text(HEAD.format(note=note) + "\n".join(table) + "\n" + FOOT, encoding="utf-8")
    print(f"{len(lines) - failed} of {len(lines)} rows passed")
    return int(failed > 0)


def run_rows(place: Path, fast: bool) -> Iterator[tuple[Seen, str]]:
    """What was seen of each row, and a mark before its command."""
    prepare(place)
    for row in ROWS:
        if fast and not row.fast:
            continue
        edit(place / CONFIG_INI, row.edits)
        edits = ", ".join(f"{name} = {value}" for name, value in row.edits.items())
        mark = f"`config.ini`: {edits}; " if edits else ""
        if row.command.startswith("serve "):
            server, *clients = serve(place, row)
            yield server, mark
            yield from ((client, "↳ ") for client in clients)
        else:
            yield run(place, shortened(row.command) if fast else row.command), mark


def shortened(command: str) -> str:
    for long, short in SMALL:
        command = command.replace(long, short)
    return command


def edit(ini: Path, edits: dict[str, str]) -> None:
    if not edits:
        return
    names = [line.partition("=")[0].strip() for line in ini.read_text("utf-8").splitlines()]
    assert set(edits) <= set(names), f"{ini} has no {set(edits) - set(names)}"
    lines = ini.read_text("utf-8").splitlines()
    changed = [f"{name} = {edits[name]}" if name in edits else line for name, line in zip(names, lines, strict=True)]
    ini.write_text("\n".join(changed) + "\n", "utf-8")


def environment(place: Path) -> dict[str, str]:
    paths = {"PYTHONPATH": str(ROOT / "src"), "HF_HOME": str(place / "hf"), "TOKENMILL_CACHE": str(place / "cache")}
    return {**os.environ, **paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def start(place: Path, command: str) -> subprocess.Popen[str]:
    command = re.sub(rf"\b({'|'.join(PORTS)})\b", lambda named: str(PORTS[named[0]]), command)
    return subprocess.Popen(
        [sys.executable, "-m", "tokenmill", *shlex.split(command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=place, env=environment(place),
    )  # fmt: skip


def run(place: Path, command: str) -> Seen:
    """A command to its end; a page that serves is ended once it answers."""
    if command.startswith("serve gradio"):
        return page(place, command)
    return seen(f"tokenmill {command}", start(place, command), TYPED)


def seen(command: str, process: subprocess.Popen[str], typed: str | None = None) -> Seen:
    """The exit code and the first line, of stdout where there is any; of a chat, the first line of its answer."""
    try:
        out, err = process.communicate(typed, timeout=TIMEOUT_S)
    finally:
        process.kill()
    _, *turns = out.split(PROMPT)
    out = turns[len(SETTINGS)] if len(turns) > len(SETTINGS) else out
    lines = [line.strip() for line in (*out.splitlines(), *err.splitlines()) if line.strip()]
    return Seen(command, process.returncode, lines[0].replace("|", "\\|") if lines else "")


def page(place: Path, command: str) -> Seen:
    """The page of gradio, or its one line without gradio."""
    import httpx

    process = start(place, command)
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{PORTS['6006']}", trust_env=False).raise_for_status()
            process.send_signal(signal.SIGTERM)
            break
        except httpx.HTTPError:
            time.sleep(0.2)
    return seen(f"tokenmill {command}", process)


def serve(place: Path, row: Row) -> list[Seen]:
    """The server's row, and those of its clients."""
    if row.command.startswith("serve gradio"):
        return [page(place, row.command)]
    check_port()
    process = start(place, row.command)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{PORTS['23333']}")
        clients = [run(place, client) for client in row.clients]
        process.send_signal(signal.SIGTERM)
    except EngineDeadError:
        clients = []
    return [seen(f"tokenmill {row.command}", process), *clients]


def check_port() -> None:
    """The tutorials name the port; somebody else's server on it would be taken for ours."""
    port = PORTS["23333"]
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise SystemExit(f"port {port} is in use: end the server there, as the tutorials name this port")


def prepare(place: Path) -> None:
    """Folders and a hub cache with the tutorials' names."""
    shutil.copytree(resolve_model("demo"), place / MATH)
    for name, family in FOLDERS.items():
        make_tiny(family, place / name)
    into_hub(place, "Qwen/Qwen-7B-Chat", lambda folder: make_tiny("qwen", folder))
    into_hub(place, "internlm/internlm-chat-20b-4bit", lambda folder: managed(place / "internlm-chat-7b", folder))


def into_hub(place: Path, name: str, make: Callable[[Path], object]) -> None:
    """A repository of the local hub cache, laid out as huggingface_hub does."""
    held = place / "hf" / "hub" / f"models--{name.replace('/', '--')}"
    (held / "refs").mkdir(parents=True)
    (held / "refs" / "main").write_text(COMMIT)
    (held / "snapshots").mkdir()
    make(held / "snapshots" / COMMIT)


def managed(source: Path, folder: Path) -> None:
    """4-bit weights as LMDeploy's hub models of 2023 announce them: no quantization_config, a `turbomind` object."""
    words = f"lite auto_awq {source} {folder} --calib-samples 2 --calib-seqlen 64 --fast"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert tokenmill(shlex.split(words)) == 0
    for name in ("manifest.json", "quantization_report.json", "quantization_report.svg", "REPORT.md"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["quantization_config"]
    config["turbomind"] = {"model_name": "internlm-chat-20b", "weight_type": "int4", "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
