"""What fits into memory, from config.json alone: every weight format with every KV cache kind. Reads no weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tokenmill.cli.legacy import note
from tokenmill.cli.options import num_bytes, positive
from tokenmill.cli.parser import Parser
from tokenmill.errors import FormatError


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", help="a folder, a config.json, a hub name, or demo")
    parser.add_argument("--gpu-memory", type=num_bytes, help="such as 24GiB; this machine's device by default")
    parser.add_argument("--batch", type=positive, default=8, help="sequences that must fit at once")
    parser.add_argument("--context", type=positive, nargs="+", default=[2048, 8192, 32768], help="their lengths")
    parser.add_argument("--cache-max-entry-count", "--kv-memory-frac", type=float, default=0.8,
                        help="share of free memory for the KV cache")  # fmt: skip
    parser.add_argument("--max-batch-size", type=positive, default=256)
    parser.add_argument("--max-prefill-token-num", type=positive, default=8192)
    parser.add_argument("--tp", type=positive, default=1, help="GPUs that share the model")


def config_of(model: str) -> Path | dict[str, Any]:
    """The folder to read facts from, or the config itself where a file was named."""
    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise FormatError(f"{path} is no JSON object: {error}") from None
    from tokenmill.api.hub import resolve_model

    folder: Path = resolve_model(model)
    return folder


def device_bytes() -> int:
    """Memory of this machine's GPU, or half of its RAM: what a process may take without harming others."""
    import os

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    note("no GPU here: half of the RAM is taken as its memory; --gpu-memory names another size")
    return ram // 2


def plan_of(
    model: str, batch: int = 8, contexts: tuple[int, ...] = (2048, 8192, 32768), args: argparse.Namespace | None = None
) -> str:
    """The plan of a model as a table, on this machine or as `args` say."""
    from tokenmill.kv.layout import kind_names, kind_of
    from tokenmill.models.spec import read_spec
    from tokenmill.runner.place import threads_for
    from tokenmill.runner.plan import PlanRequest, format_plan, memory_plan

    spec = read_spec(config_of(model))
    asked = {} if args is None else {
        "memory_frac": args.cache_max_entry_count,
        "max_rows": args.max_batch_size,
        "max_step_tokens": args.max_prefill_token_num,
        "tp": args.tp,
    }  # fmt: skip
    memory = (args.gpu_memory if args else None) or device_bytes()
    heads = max(spec.num_kv_heads // asked.get("tp", 1), 1)
    kinds = ["auto"] if spec.latent else kind_names()
    kv = {name: kind_of(spec.latent, name).bytes_per_token(heads, spec.head_dim, 2) for name in kinds}
    table = format_plan(memory_plan(spec, kv, PlanRequest(memory, batch=batch, contexts=contexts, **asked)))
    return f"{table}\nThreads of a step on this machine's CPU: {threads_for(spec.linear_params)} (--threads sets it)."


def run(args: argparse.Namespace) -> int:
    print(plan_of(args.model, args.batch, tuple(args.context), args))
    return 0
