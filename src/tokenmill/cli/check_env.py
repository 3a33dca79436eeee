"""Prints what this machine has: versions, devices, memory. `--dump-file` also writes it (.json, .yml)."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from tokenmill import __version__, env
from tokenmill.cli.parser import Parser
from tokenmill.errors import ConfigError

PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "safetensors", "tokenizers", "transformers", "fastapi", "starlette",
    "uvicorn", "pydantic", "httpx", "msgspec", "openai", "huggingface_hub", "gradio", "ray",
)  # fmt: skip
TOOLS = {"nvcc": ("nvcc", "--version"), "gcc": ("gcc", "--version")}


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def tool_version(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return "not found"
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    return shown.splitlines()[0 if command[0] == "gcc" else -1] if shown else "no answer"


def devices() -> dict[str, Any]:
    """What torch sees."""
    import torch

    if not torch.cuda.is_available():
        return {"CUDA available": False, "CPU threads": torch.get_num_threads()}
    gpus = {}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        gpus[f"GPU {index}"] = f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB, sm_{facts.major}{facts.minor}"
    return {"CUDA available": True, "CUDA of torch": torch.version.cuda, **gpus}


def topology() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    done = subprocess.run(("nvidia-smi", "topo", "-m"), capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.strip() or "no answer"


def report() -> dict[str, Any]:
    """Every line of the report, in order."""
    return {
        "tokenmill": __version__,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **devices(),
        "CUDA_HOME": env.cuda_home() or "not set",
        **{package: version_of(package) for package in PACKAGES},
        **{name: tool_version(command) for name, command in TOOLS.items()},
        "cache folder": str(env.cache_dir()),
        "GPU topology": topology(),
    }


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--dump-file", type=Path, help="also write the report here, as .json or .yml")


def run(args: argparse.Namespace) -> int:
    found = report()
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n")
    if args.dump_file:
        if args.dump_file.suffix not in (".json", ".yml", ".yaml"):
            raise ConfigError(f"--dump-file is {args.dump_file.name}; it must end with .json or .yml (no pickles)")
        # JSON is YAML, too.
        args.dump_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0
