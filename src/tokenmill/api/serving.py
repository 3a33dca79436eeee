"""`tokenmill.serve(model)`: a server in a process of its own, and an APIClient once it answers.

The process is the command `tokenmill serve api_server`, so that it is what a user would start by hand; the records'
fields become its flags. It ends with the client's `close` or with this program. What it logs goes to our stderr.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import weakref
from dataclasses import fields
from typing import Any

from tokenmill import env
from tokenmill.api.client import APIClient
from tokenmill.api.compat import engine_config
from tokenmill.api.configs import ChatTemplateConfig, EngineWish, TurbomindEngineConfig
from tokenmill.api.ports import free_port
from tokenmill.errors import ConfigError

# Flags by field; what they mean is `cli/options.py`'s.
FLAGS = {
    "dtype": "--dtype", "model_format": "--model-format", "tp": "--tp", "session_len": "--session-len",
    "max_batch_size": "--max-batch-size", "cache_max_entry_count": "--cache-max-entry-count",
    "cache_block_seq_len": "--cache-block-seq-len", "block_size": "--cache-block-seq-len",
    "enable_prefix_caching": "--enable-prefix-caching", "quant_policy": "--quant-policy",
    "rope_scaling_factor": "--rope-scaling-factor", "use_logn_attn": "--use-logn-attn", "revision": "--revision",
    "download_dir": "--download-dir", "max_prefill_token_num": "--max-prefill-token-num", "async_": "--async",
    "device_type": "--device", "eager_mode": "--eager-mode", "num_gpu_blocks": "--num-blocks",
    "hf_overrides": "--hf-overrides", "language_model_only": "--language-model-only",
}  # fmt: skip
DEFAULTS = {"server_name": "0.0.0.0", "server_port": 23333, "log_level": "ERROR", "api_keys": None, "ssl": False}
START_TIMEOUT_S = 1800.0
STOP_TIMEOUT_S = 20.0


def serve(
    model_path: str,
    model_name: str | None = None,
    backend: str = "turbomind",
    backend_config: EngineWish | None = None,
    chat_template_config: ChatTemplateConfig | None = None,
    *positional: Any,
    **options: Any,
) -> APIClient:
    """Starts a server and gives a client once it answers. `options`, with LMDeploy's defaults: server_name 0.0.0.0,
    server_port 23333 (0: any free one), log_level ERROR, api_keys, ssl False, tp.

    Raises ConfigError for what cannot be served, and where the process ends before it answers.
    """
    named = dict(zip(DEFAULTS, positional, strict=False))
    said: dict[str, Any] = dict(DEFAULTS)
    unknown = sorted(set(options) - {*said, "tp"})
    if unknown:
        raise ConfigError(f"serve has no argument {', '.join(unknown)}; it has {', '.join((*said, 'tp'))}")
    said |= {**named, **options}
    wish = backend_config or TurbomindEngineConfig(tp=said.get("tp") or 1, enable_prefix_caching=True)
    engine_config(str(model_path), wish)
    port = said["server_port"] or free_port()
    keys = said["api_keys"].split(",") if isinstance(said["api_keys"], str) else list(said["api_keys"] or ())
    command = [
        sys.executable, "-m", "tokenmill", "serve", "api_server", str(model_path), "--server-name", said["server_name"],
        "--server-port", str(port), "--backend", backend, "--log-level", said["log_level"], *_flags(wish),
    ]  # fmt: skip
    command += ["--model-name", model_name] * (model_name is not None) + ["--ssl"] * bool(said["ssl"])
    if chat_template_config is not None:
        command += ["--chat-template", json.dumps(_given(chat_template_config))]
    host = "127.0.0.1" if said["server_name"] in ("0.0.0.0", "") else said["server_name"]
    url = f"{'https' if said['ssl'] else 'http'}://{host}:{port}"
    return _started(command, APIClient(url, keys[0] if keys else None), keys)


def _flags(wish: EngineWish) -> list[str]:
    """The flags of every field that is not at its default."""
    words: list[str] = []
    for field in fields(wish):
        value = getattr(wish, field.name)
        if value != field.default and field.name in FLAGS:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            words += [FLAGS[field.name], str(int(value)) if field.name == "quant_policy" else text]
    return words


def _given(config: ChatTemplateConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) is not None}


def _started(command: list[str], client: APIClient, keys: list[str]) -> APIClient:
    # Keys by environment, as every user of the machine may read a process's arguments.
    environment = env.with_api_keys(keys)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    client.server = weakref.finalize(client, _end, process)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not client.is_ready():
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            client.close()
            why = f"ended with exit code {code}" if code is not None else f"did not answer in {START_TIMEOUT_S:g} s"
            raise ConfigError(f"the server {why}; what it wrote to stderr says more")
        time.sleep(0.1)
    return client


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
