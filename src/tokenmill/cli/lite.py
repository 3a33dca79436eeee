"""What the `lite` verbs share: their common options, and one run from options to a folder."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.cli.parser import Parser
from tokenmill.cli.progress import progress
from tokenmill.errors import ConfigError

if TYPE_CHECKING:
    from tokenmill.quant.recipe import Recipe
    from tokenmill.quant.text import Tokens

DTYPES = ("auto", "float16", "bfloat16")
DEVICES = ("auto", "cuda", "cpu")
WORK_DIR = Path("./work_dir")
# A search runs a module 40 times over these tokens: seconds a layer on a GPU, minutes on two cores.
SEARCH_TOKENS = {"cuda": 16_384, "cpu": 4_096}


@dataclass(frozen=True, slots=True)
class Defaults:
    """Where verbs differ."""

    samples: int = 128
    seqlen: int = 2048


def add_common(parser: Parser, defaults: Defaults = Defaults()) -> None:
    """The options of every `lite` verb, LMDeploy's and ours."""
    parser.add_argument("model", help="a checkpoint folder, a hub name, or demo")
    parser.add_argument("--work-dir", type=Path, default=WORK_DIR, help="where to write; must not exist")
    parser.add_argument(
        "--calib-dataset", default="python-docs",
        help="a txt, jsonl, parquet or npy file; names such as ptb or wikitext2 are accepted, and Python's own "
        "documentation stands in for them, as nothing is downloaded",
    )  # fmt: skip
    parser.add_argument("--calib-samples", type=int, default=defaults.samples, help="windows to learn from")
    parser.add_argument("--calib-seqlen", type=int, default=defaults.seqlen, help="tokens of a window")
    parser.add_argument("--batch-size", type=int, default=1, help="accepted; windows are run one by one")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of what is not quantized; auto: as it is")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto: cuda where there is one")
    parser.add_argument("--seed", type=int, default=0, help="of the windows drawn from the calibration text")
    parser.add_switch("--resume", "go on where an interrupted run of the same command stopped")
    parser.add_argument("--max-kl", type=float, default=None, help="refuse to finish above this KL on held-out text")
    parser.add_argument("--revision", default=None, help="of a hub name")
    parser.add_argument("--download-dir", default=None, help="where hub models are kept")
    parser.add_switch("--trust-remote-code", "accepted; code in a checkpoint is never run")


def add_weight_options(parser: Parser) -> None:
    parser.add_argument("--w-bits", type=int, default=4, help="2, 3, 4 or 8")
    parser.add_argument("--w-group-size", type=int, default=128, help="in-features a scale; -1: one scale a row")
    parser.add_argument("--to", default="", help="disk format: awq, gptq, gptq_v1, gptq_v2 or compressed-tensors")


def device_of(name: str) -> str:
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return "cuda" if found and name != "cpu" else "cpu"


def group_of(size: int) -> int | None:
    return None if size == -1 else size


def read_tokens(args: argparse.Namespace) -> tuple[Path, Tokens]:
    """The source's folder, and calibration windows in its tokens."""
    from tokenmill.api.hub import resolve_model
    from tokenmill.quant.text import Choice, calibration
    from tokenmill.tokenize.loader import load_tokenizer

    choice = Choice(args.calib_dataset, args.calib_samples, args.calib_seqlen, args.seed)
    source = resolve_model(args.model, args.revision, args.download_dir)
    tokenizer = load_tokenizer(source)
    return source, calibration(choice, lambda text: tokenizer.encode(text, add_special_tokens=False))


def quantize(args: argparse.Namespace, recipe: Recipe) -> int:
    """Runs a verb: tokens, blocks, folder, and a few lines on how good it is."""
    import torch

    from tokenmill.quant.job import Job
    from tokenmill.quant.report import PAGE
    from tokenmill.quant.run import quantize_folder

    device = device_of(args.device)
    source, tokens = read_tokens(args)
    job = Job(
        source, args.work_dir, recipe, tokens, torch.device(device), args.resume, args.max_kl,
        None if args.dtype == "auto" else getattr(torch, args.dtype),
    )  # fmt: skip
    with progress(recipe.method, "blocks") as show:
        outcome = quantize_folder(job, lambda done, total, error: show(done, total, f"error {error:.3g}"))
    print(f"wrote {args.work_dir} ({_size(args.work_dir)} from {_size(source)})")
    if outcome.quality is not None:
        print(json.dumps({"held_out": outcome.quality.facts()}))
    print(f"report: {args.work_dir / PAGE}")
    print(f"next: tokenmill chat {args.work_dir}")
    return 0


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 2**20:.1f} MiB"
