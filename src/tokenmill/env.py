"""Every environment variable Tokenmill reads, in one place. LMDeploy's own names are honoured where they have one."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

_TRUE = ("1", "true", "yes", "on")


def _flag(*names: str) -> bool:
    return any(os.environ.get(name, "").strip().lower() in _TRUE for name in names)


def use_modelscope() -> bool:
    """Fetch models from ModelScope instead of the Hugging Face hub."""
    return _flag("TOKENMILL_USE_MODELSCOPE", "LMDEPLOY_USE_MODELSCOPE")


def hub_offline() -> bool:
    return _flag("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def cache_dir() -> Path:
    """Where compiled kernels and downloads of our own may be kept."""
    base = os.environ.get("TOKENMILL_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "tokenmill" if base else Path.home() / ".cache" / "tokenmill"


def log_level() -> str:
    return os.environ.get("TOKENMILL_LOG_LEVEL") or os.environ.get("TM_LOG_LEVEL") or "WARNING"


def log_file() -> str | None:
    return os.environ.get("TOKENMILL_LOG_FILE") or os.environ.get("LMDEPLOY_LOG_FILE") or None


def uvicorn_log_level() -> str:
    return os.environ.get("UVICORN_LOG_LEVEL", "info").lower()


def keep_alive_s() -> int:
    return int(os.environ.get("UVICORN_TIMEOUT_KEEP_ALIVE", "5"))


def proxy_timeout_s() -> float | None:
    """How long `serve proxy` waits for a server's next bytes."""
    value = os.environ.get("AIOHTTP_TIMEOUT", "")
    return float(value) if value else None


def proxy_forget_s() -> float:
    """How long a lost server stays in a proxy's table."""
    return float(os.environ.get("LMDEPLOY_CONTROLLER_HEART_BEAT_EXPIRATION", "90"))


def ssl_files() -> tuple[str | None, str | None]:
    """(key file, certificate file) for `--ssl`."""
    return os.environ.get("SSL_KEYFILE"), os.environ.get("SSL_CERTFILE")


def kernels() -> tuple[str, ...] | None:
    """Kernel backends for GPUs in order of preference, instead of our own choice; `reference` alone is plain torch."""
    value = os.environ.get("TOKENMILL_KERNELS")
    if value is None:
        return None
    return tuple(name.strip() for name in value.split(",") if name.strip() not in ("", "reference"))


def early_launch() -> bool:
    """Start GPU kernels before their predecessor ends (programmatic dependent launch)."""
    return _flag("TOKENMILL_EARLY_LAUNCH")


def cuda_home() -> str | None:
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or None


def api_keys() -> tuple[str, ...]:
    """Keys given by environment, comma separated, so that they stand in no process listing."""
    return tuple(key.strip() for key in os.environ.get("TOKENMILL_API_KEYS", "").split(",") if key.strip())


def with_api_keys(keys: Sequence[str]) -> dict[str, str]:
    """The environment of a server we start, with its keys."""
    return {**os.environ, **({"TOKENMILL_API_KEYS": ",".join(keys)} if keys else {})}


# What a measurement of another engine needs: few words, no call home, and of samplers the one that needs no compiler.
_PEERS = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0",
          "TM_LOG_LEVEL": "ERROR"}  # fmt: skip


def for_peer(packages: Sequence[Path], libraries: Sequence[Path]) -> dict[str, str]:
    """The environment of another engine's process: `packages` and `libraries` come before what is there already."""

    def before(paths: Sequence[Path], name: str) -> dict[str, str]:
        joined = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get(name)])])
        return {name: joined} if joined else {}

    return {**_PEERS, **os.environ, **before(packages, "PYTHONPATH"), **before(libraries, "LD_LIBRARY_PATH")}


def keep_gloo_local() -> None:
    """Ranks share a host, so their sockets need not be reachable from elsewhere. What the user has set stands."""
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def num_threads() -> int | None:
    """Threads of the CPU backend, as OpenMP's own variable says."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def without_blas_threads() -> dict[str, str]:
    """The environment of a child that multiplies nothing: each of numpy's threads would take address space there."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
